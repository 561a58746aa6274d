"""A packed data set as one flat list of samples, checked against its manifest when it is opened."""

import bisect
import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path

from vitscale.config import DataError
from vitscale.data.index import IndexTable, decode_index, index_name
from vitscale.data.manifest import MANIFEST_NAME, Manifest, Shard, decode_manifest
from vitscale.data.storage import Storage, open_storage


@dataclass(frozen=True, kw_only=True)
class ShardSpan:
    """Neighbouring samples of one shard: `[first, stop)` counted inside the shard; `first_id` is the flat index of the first."""

    shard: Shard
    first: int
    stop: int
    first_id: int


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An opened data set. Samples are addressed by their flat index in [0, num_samples). Picklable."""

    storage: Storage
    manifest: Manifest
    sha256: str
    """Of manifest.json: the identity of the data, recorded in checkpoints."""
    shard_starts: tuple[int, ...]
    """Flat index of each shard's first sample, and `num_samples` at the end."""

    @property
    def num_samples(self) -> int:
        return self.manifest.num_samples

    @property
    def shards(self) -> tuple[Shard, ...]:
        return self.manifest.shards

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in label order, None for a data set without classes."""
        return self.manifest.classes

    @property
    def num_classes(self) -> int | None:
        return None if self.manifest.classes is None else len(self.manifest.classes)

    def locate(self, sample_id: int) -> ShardSpan:
        """Where one sample lies."""
        return self.spans(sample_id, sample_id + 1)[0]

    def spans(self, first: int, stop: int) -> list[ShardSpan]:
        """The flat range [first, stop) cut at shard boundaries, in order."""
        if not 0 <= first <= stop <= self.num_samples:
            raise IndexError(f"samples [{first}, {stop}) of {self.num_samples}")
        result = []
        position = bisect.bisect_right(self.shard_starts, first) - 1
        while first < stop:
            start, end = self.shard_starts[position], min(stop, self.shard_starts[position + 1])
            result.append(ShardSpan(shard=self.shards[position], first=first - start, stop=end - start, first_id=first))
            first = end
            position += 1
        return result

    def read_index(self, shard: Shard) -> IndexTable:
        """The shard's index, verified against the manifest. Raises `DataError`."""
        name = index_name(shard.name)
        return decode_index(self.storage.read_file(name), shard=shard, path=f"{self.storage.root}/{name}")


def open_dataset(path: str | Path) -> Dataset:
    """Open the data set in the folder `path`.

    Checks the manifest, the size of every shard and the sha256 of every index; the payload is checked by crc32 as it is
    read. Raises `DataError` saying which file is missing or changed.
    """
    dataset = open_unchecked(path)
    for shard in dataset.shards:
        _verify(shard, dataset=dataset)
    return dataset


def open_unchecked(path: str | Path) -> Dataset:
    """Open a data set of which shards may be missing or damaged: the manifest alone is checked. For tools that look for damage."""
    storage = open_storage(path)
    if not Path(path).is_dir():
        raise DataError(f"{path}: no such data set folder. Give the folder that `vitscale-data pack` wrote (it holds {MANIFEST_NAME}).")
    if not (Path(path) / MANIFEST_NAME).is_file():
        raise DataError(f"{path}: not a packed data set, it has no {MANIFEST_NAME}. {_advice(Path(path))}")
    raw = storage.read_file(MANIFEST_NAME)
    manifest = decode_manifest(raw, path=f"{path}/{MANIFEST_NAME}")
    starts = tuple(itertools.accumulate((shard.num_samples for shard in manifest.shards), initial=0))
    return Dataset(storage=storage, manifest=manifest, sha256=hashlib.sha256(raw).hexdigest(), shard_starts=starts)


def _advice(path: Path) -> str:
    """A folder of data sets, one per split, is the likely slip: name them."""
    inside = sorted(child.parent.name for child in path.glob(f"*/{MANIFEST_NAME}"))
    if inside:
        return f"Give one of the data sets inside it: {', '.join(str(path / name) for name in inside)}."
    return "Make one with `vitscale-data pack`, or give the folder that it wrote."


def _verify(shard: Shard, *, dataset: Dataset) -> None:
    actual = dataset.storage.size(shard.name)
    if actual != shard.bytes:
        raise DataError(
            f"{dataset.storage.root}/{shard.name}: changed since the data set was packed: {actual} bytes, "
            f"the manifest says {shard.bytes}. Restore the file from a copy or pack the data set again."
        )
    dataset.read_index(shard)
