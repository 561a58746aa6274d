"""Unindexed WebDataset tars, read through the webdataset library: for data sets that nobody has indexed yet.

The library takes the tars apart and shuffles; it opens nothing and decodes nothing. Shards come through our own storage, so
no shell, no `curl`, no `gopen` with its rewriting of addresses is involved; members stay bytes until our own decoder, which
knows images and labels, gets them, so no pickle is ever loaded. `WDS_SECURE` is set all the same.

How shards are split: in each pass over the data set its shards are permuted and laid out evenly, from a random offset on, along
the positions of the global batch; a reader (one worker of one rank) takes those that fall on the positions it makes. So each
shard is read once per pass, by one reader, in proportion to what a reader consumes, whatever their numbers are; a reader that
gets no shard in a pass goes on to the next one. Length is counted in samples: readers never end and never wait for each other.
"""

import hashlib
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch.utils.data import IterableDataset

from vitscale.config import ConfigError, DataError, UserError
from vitscale.data.config import StreamConfig
from vitscale.data.demand import Demand
from vitscale.data.lanes import BatchSlice, worker_slice
from vitscale.data.replacement import Row
from vitscale.data.shard_urls import expand_urls, locate
from vitscale.data.storage.io_counters import IoMeter
from vitscale.data.storage.storage import Storage, open_storage
from vitscale.data.storage.storage_stream import StorageStream
from vitscale.data.types import LostSample, RawSample, SampleTransform, StagedTransform, UnreachableDataError, UnreadableSampleError
from vitscale.data.worker import Part, current_worker, stack_rows
from vitscale.dist.seeding import CounterRng, counter_key, mix_array

CAVEATS = (
    "data.kind webdataset_stream: the order of samples depends on the number of ranks and of data.num_workers, so another"
    " topology trains on other batches",
    "data.kind webdataset_stream: a resume shuffles anew instead of going on where the run was; some samples of the pass that"
    " was under way are seen again and some are not",
    "data.kind webdataset_stream: plain tars carry no checksums of their data, so changed bytes may pass unnoticed",
    "`vitscale-data index` makes the same tars exact, resumable and checked (data.kind shards), without rewriting them",
)
"""What streams cannot promise, a sentence each: reasons of the plan, so that a run says them at every start."""

_MOST_EMPTY_SHARDS = 32
_MOST_UNREADABLE_IN_A_ROW = 1024
_END_OF_ARCHIVE_BYTES = 1024
_COMPRESSIONS = {b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LONGEST_MAGIC = 6


def open_stream(config: StreamConfig) -> "StreamData":
    """Find the shards that `config` names, and ask for the first of every folder or bucket. Raises `DataError` for one that is
    not there or not to be had with the credentials at hand, `ConfigError` where the webdataset library is not installed."""
    _library()
    urls = expand_urls(config.urls)
    for first in {location.root: location for location in map(locate, reversed(urls))}.values():
        open_storage(first.root).size(first.name)
    return StreamData(config=config, urls=urls)


@dataclass(frozen=True, kw_only=True)
class StreamData:
    """Training data as a stream; see `vitscale.data.source.TrainingData`."""

    config: StreamConfig
    urls: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...] | None:
        return None if self.config.classes is None else tuple(self.config.classes)

    @property
    def epoch_samples(self) -> int | None:
        return self.config.num_samples

    @property
    def cursor_unit(self) -> int:
        return 1

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"data: {len(self.urls)} unindexed shards as a stream",)

    def identity(self) -> dict[str, object]:
        return {"urls_sha256": hashlib.sha256("\n".join(self.urls).encode()).hexdigest(), "shuffle_buffer": self.config.shuffle_buffer}

    def batch_ids(self, consumed: int, *, global_batch: int) -> None:  # noqa: ARG002  (part of the protocol)
        return None

    def parts(self, demand: Demand) -> "StreamParts":
        return StreamParts(
            urls=self.urls,
            shuffle_buffer=self.config.shuffle_buffer,
            transform=demand.transform,
            seed=demand.seed,
            global_batch=demand.global_batch,
            start_samples=demand.start_samples,
            rank_slice=demand.rank_slice,
        )


@dataclass(frozen=True, kw_only=True)
class StreamParts(IterableDataset[Part]):
    """One rank's slice of successive global batches, for ever; each worker iterates over its part of that slice.

    `urls` are shards as `expand_urls` gives them. The batches are a function of these values, the number of workers, and what
    the shards hold. A shard that is damaged or missing, and an image that cannot be decoded, are told in `Part.lost`.
    """

    urls: tuple[str, ...]
    shuffle_buffer: int
    transform: StagedTransform
    seed: int
    global_batch: int
    start_samples: int
    rank_slice: BatchSlice

    def __iter__(self) -> Iterator[Part]:
        worker, num_workers = current_worker()
        part_slice = worker_slice(self.rank_slice, samples_per_lane=1, worker=worker, num_workers=num_workers)
        if part_slice.start == part_slice.stop:
            while True:
                yield Part()
        # After a resume, which cannot go back to where the shuffle was, a shuffle and draws that were not had before.
        seed = self.seed if self.start_samples == 0 else counter_key(self.seed, "resumed after", self.start_samples)
        consumed = self.start_samples
        try:
            reader = _StreamReader(self, part_slice=part_slice, seed=seed)
            meter = IoMeter(reader.io_counters)
            samples = reader.samples()
            while True:
                transform = self.transform.at(consumed)
                rows = [reader.row(samples, transform=transform) for _ in range(part_slice.start, part_slice.stop)]
                yield Part(batch=stack_rows(rows), lost=reader.take_lost(), io=meter.since_last())
                consumed += self.global_batch
        except UserError as error:
            yield Part(error=error)


class _StreamReader:
    """What one worker of one rank reads."""

    def __init__(self, parts: StreamParts, *, part_slice: BatchSlice, seed: int) -> None:
        self._parts = parts
        self._slice = part_slice
        self._seed = seed
        self._library = _library()
        self._storages: dict[str, Storage] = {}
        self._lost: list[LostSample] = []
        self._newest_problem = ""
        self._num_whole_shards = 0
        self._num_whole_samples = 0

    def samples(self) -> Iterator[RawSample]:
        """Samples for ever, through the library's shuffle buffer. Raises `DataError` when shard after shard holds none."""
        draws = random.Random(counter_key(self._seed, "shuffle buffer", self._slice.start, self._slice.stop))
        shuffled = self._library.shuffle(self._parts.shuffle_buffer, rng=draws)(self._unshuffled())
        return cast("Iterator[RawSample]", shuffled)

    def row(self, samples: Iterator[RawSample], *, transform: SampleTransform) -> Row:
        """The next sample that can be decoded, transformed; those before it are lost."""
        unreadable: list[tuple[RawSample, str]] = []
        while len(unreadable) < _MOST_UNREADABLE_IN_A_ROW:
            sample = next(samples)
            try:
                fields = transform(sample, CounterRng(self._seed, sample.view, sample.sample_id, "transform"))
            except UnreadableSampleError as error:
                unreadable.append((sample, str(error)))
                continue
            self._lost += [
                LostSample(
                    sample_id=lost.sample_id,
                    epoch=lost.epoch,
                    view=self._parts.start_samples + lost.view,
                    shard=lost.shard,
                    reason=reason,
                    replaced_by=sample.sample_id,
                )
                for lost, reason in unreadable
            ]
            return Row(sample=sample, fields=fields)
        raise DataError(f"data.urls: {len(unreadable)} samples in a row could not be decoded, the last one: {unreadable[-1][1]}")

    def take_lost(self) -> tuple[LostSample, ...]:
        """What was lost since the last call."""
        lost, self._lost = self._lost, []
        return tuple(lost)

    def io_counters(self) -> Counter[str]:
        """What reading has cost so far."""
        return sum((Counter(storage.io_counters()) for storage in self._storages.values()), Counter[str]())

    def _unshuffled(self) -> Iterator[RawSample]:
        empty: list[str] = []
        for number, url in self._dealt_shards():
            empty.append(url)
            for sample in self._shard_samples(url, number=number):
                empty.clear()
                yield sample
            if len(empty) >= _MOST_EMPTY_SHARDS or len(set(empty)) == len(self._parts.urls):
                problem = self._newest_problem or "they are tars without a member KEY.EXTENSION"
                raise DataError(f"data.urls: no sample was found in the last {len(empty)} shards, {url} among them: {problem}")

    def _dealt_shards(self) -> Iterator[tuple[int, str]]:
        """(number of the pass, shard) for ever; see the top of the file."""
        urls, total = self._parts.urls, self._parts.global_batch
        places = np.arange(len(urls), dtype=np.uint64)
        number = 0
        while True:
            order = np.argsort(mix_array(places ^ np.uint64(counter_key(self._seed, number, "shards"))), kind="stable")
            offset = counter_key(self._seed, number, "offset") >> 32
            for place, shard in enumerate(order.tolist()):
                if self._slice.start <= ((place << 32) + offset) * total // (len(urls) << 32) < self._slice.stop:
                    yield number, urls[shard]
            number += 1

    def _shard_samples(self, url: str, *, number: int) -> Iterator[RawSample]:
        """The samples of a shard; one that turns out damaged is reported, and its last sample, which may lack members, held back."""
        problems: list[str] = []
        count, held = 0, None
        for sample in self._members_by_key(url, problems=problems):
            if held is not None:
                count += 1
                yield held
            held = _raw_sample(sample, shard=url, number=number)
        if held is not None and not problems:
            self._num_whole_shards += 1
            self._num_whole_samples += count + 1
            yield held
        if problems:
            self._report(url, number=number, problem=problems[0], num_read=count)

    def _members_by_key(self, url: str, *, problems: list[str]) -> Iterator[dict[str, Any]]:
        """Samples as the library puts them together; whatever is wrong with the shard ends it and is added to `problems`."""
        unreachable: list[UnreachableDataError] = []

        def stop(error: Exception) -> bool:
            # The library adds to the arguments of what it hands over, and to the first of them.
            problem = str(error.args[0] if error.args else error).partition(" @ ")[0] or type(error).__name__
            if isinstance(error, UnreachableDataError):
                unreachable.append(error.retold(problem))
            else:
                problems.append(problem)
            return False

        tars = self._library.tariterators
        try:
            stream = self._open(url)
            files = tars.tar_file_expander([{"url": url, "stream": stream}], handler=stop)
            yield from tars.group_by_keys(files, handler=stop)
            if not problems and not unreachable:
                problems += _problems_at_end(stream)
        except UnreachableDataError:
            raise
        except DataError as error:  # of the storage: what the library meets itself goes to the handler
            stop(error)
        if unreachable:
            raise unreachable[0]

    def _open(self, url: str) -> StorageStream:
        location = locate(url)
        if location.root not in self._storages:
            self._storages[location.root] = open_storage(location.root)
        stream = StorageStream(self._storages[location.root], location.name)
        start = stream.head(_LONGEST_MAGIC)
        for magic, compression in _COMPRESSIONS.items():
            if start.startswith(magic):
                # Read as such it would decompress without bound, at a cost that no loader can afford.
                raise DataError(f"{url}: compressed with {compression}. Give tars as they are; images in them are compressed already.")
        return stream

    def _report(self, url: str, *, number: int, problem: str, num_read: int) -> None:
        expected = round(self._num_whole_samples / max(1, self._num_whole_shards))
        self._newest_problem = f"{url}: damaged or missing, {num_read} samples of it were read: {problem}"
        self._lost.append(
            LostSample(
                sample_id=_sample_id(url, ""),
                epoch=number,
                # A resume counts passes from 0 again; what it loses are other losses.
                view=self._parts.start_samples + number,
                shard=url,
                reason=self._newest_problem,
                num_lost=max(1, expected - num_read),
            )
        )


def _problems_at_end(stream: StorageStream) -> Iterator[str]:
    """What the library takes for the end of a tar without a word: an invalid header, and the end of a file that was cut."""
    position = stream.position
    while more := stream.read(2**20):
        if more.strip(b"\0"):
            yield f"its tar ends before byte {position} of {stream.size} and more follows (a damaged header, or several tars in one file)"
            return
    if stream.tail(_END_OF_ARCHIVE_BYTES) != bytes(_END_OF_ARCHIVE_BYTES):
        yield "it has no end-of-archive mark, so it was cut short"


def _raw_sample(sample: Mapping[str, Any], *, shard: str, number: int) -> RawSample:
    key = sample["__key__"]
    members = {name: memoryview(value) for name, value in sample.items() if not name.startswith("__")}
    return RawSample(sample_id=_sample_id(shard, key), epoch=number, view=number, key=key, shard=shard, members=members)


def _sample_id(shard: str, key: str) -> int:
    """63 bits that name a sample: there is no index that could number it."""
    return counter_key(shard, key) >> 1


def _library() -> Any:
    """The webdataset library, told to be careful: read by it when it is imported, and again for whoever imported it before."""
    os.environ["WDS_SECURE"] = "1"
    try:
        import webdataset
    except ImportError:
        raise ConfigError(
            "data.kind: webdataset_stream reads tars through the webdataset library, which is not installed here. Install it with"
            " pip install 'vitscale[webdataset]', or index the tars once with `vitscale-data index` and use data.kind: shards."
        ) from None
    webdataset.utils.enforce_security = True
    return webdataset
