"""Reads samples by flat index range: one ranged read per shard touched, every sample checked by its crc32."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping

from isal import isal_zlib

from vitscale.config import DataError
from vitscale.data.dataset import Dataset, ShardSpan
from vitscale.data.index import IndexTable
from vitscale.data.types import LostSample, RawSample, UnreachableDataError
from vitscale.data.ustar import MalformedTarError, parse_sample

_CACHED_INDEXES = 256


class SampleReader:
    """Reads one data set; keeps the indexes of the shards used last. Picklable; for one thread at a time."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._indexes: OrderedDict[str, IndexTable] = OrderedDict()

    def read(self, first: int, stop: int, *, epoch: int = 0) -> list[RawSample]:
        """The samples of the flat range [first, stop), in order; `epoch` is only written into them.

        Members are views into the bytes of the ranged read they came with. Raises `DataError` naming shard, sample and
        remedy when bytes are missing or differ from what was packed.
        """
        samples: list[RawSample] = []
        for sample in self.scan(first, stop, epoch=epoch):
            if isinstance(sample, LostSample):
                raise DataError(sample.reason)
            samples.append(sample)
        return samples

    def scan(self, first: int, stop: int, *, epoch: int) -> Iterator[RawSample | LostSample]:
        """The same, with a `LostSample` wherever bytes are missing or damaged: a failed read loses all that it was to fetch,
        a sample whose bytes changed loses itself. Raises `UnreachableDataError` where a store does not answer: nothing is lost then."""
        for span in self._dataset.spans(first, stop):
            yield from self._scan_span(span, epoch=epoch)

    def io_counters(self) -> Mapping[str, int]:
        """What reading has cost in this process so far; see `Storage`."""
        return self._dataset.io_counters()

    def __reduce__(self) -> tuple[type["SampleReader"], tuple[Dataset]]:
        return SampleReader, (self._dataset,)

    def _scan_span(self, span: ShardSpan, *, epoch: int) -> Iterator[RawSample | LostSample]:
        name = span.shard.name
        try:
            rows = self._index(span)[span.first : span.stop]
            offsets, lengths, crcs = rows["offset"].tolist(), rows["length"].tolist(), rows["crc32"].tolist()
            base = offsets[0]
            data = memoryview(self._dataset.storage.read_range(name, offset=base, length=offsets[-1] + lengths[-1] - base))
        except UnreachableDataError:
            raise
        except DataError as error:
            for sample_id in range(span.first_id, span.first_id + span.stop - span.first):
                yield LostSample(sample_id=sample_id, epoch=epoch, view=epoch, shard=name, reason=str(error))
            return
        for sample_id, (offset, length, crc) in enumerate(zip(offsets, lengths, crcs, strict=True), start=span.first_id):
            view = data[offset - base : offset - base + length]
            try:
                if isal_zlib.crc32(view) != crc:
                    view = self._read_again(name, offset=offset, length=length, crc=crc)
                key, members = parse_sample(view)
            except MalformedTarError as error:
                reason = self._damage(name, sample_id=sample_id, offset=offset, problem=str(error))
                yield LostSample(sample_id=sample_id, epoch=epoch, view=epoch, shard=name, reason=reason)
                continue
            yield RawSample(sample_id=sample_id, epoch=epoch, view=epoch, key=key, shard=name, members=members)

    def _read_again(self, shard: str, *, offset: int, length: int, crc: int) -> memoryview:
        """A sample whose bytes arrived damaged, past the cache that may have kept them so."""
        try:
            view = memoryview(self._dataset.storage.read_again(shard, offset=offset, length=length))
        except UnreachableDataError:
            raise
        except DataError as error:
            raise MalformedTarError(f"its bytes are not those that were packed, and reading them again failed ({error})") from None
        if isal_zlib.crc32(view) != crc:
            raise MalformedTarError(f"its bytes changed since it was packed{_key_hint(view)}")
        return view

    def _index(self, span: ShardSpan) -> IndexTable:
        name = span.shard.name
        table = self._indexes.pop(name, None)
        if table is None:
            table = self._dataset.read_index(span.shard)
        self._indexes[name] = table
        if len(self._indexes) > _CACHED_INDEXES:
            self._indexes.popitem(last=False)
        return table

    def _damage(self, shard: str, *, sample_id: int, offset: int, problem: str) -> str:
        return (
            f"{self._dataset.storage.root}/{shard}: sample {sample_id} (byte {offset}) is damaged: {problem}. "
            "Restore the shard from a copy or pack the data set again."
        )


def _key_hint(view: memoryview) -> str:
    """The key that the damaged bytes still show, if any."""
    try:
        return f" (key {parse_sample(view)[0]})"
    except MalformedTarError:
        return ""
