"""A packed data set as one flat list of samples, checked against its manifest when it is opened."""

import bisect
import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from vitscale.config import DataError
from vitscale.data.index import INDEX_DTYPE, IndexTable, decode_index, index_name
from vitscale.data.manifest import MANIFEST_NAME, Manifest, Shard, decode_manifest
from vitscale.data.storage.block_cache import BlockCache, CacheConfig
from vitscale.data.storage.cached_storage import CachedStorage
from vitscale.data.storage.storage import LocalStorage, Storage, open_storage
from vitscale.data.storage.store_address import is_address
from vitscale.data.types import UnreachableDataError

_CHECK_THREADS = 16
_SHARDS_PER_TASK = 64
_LONGEST_HEADER = 4096


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
    """Of the tars."""
    index_storage: Storage
    """Of the manifest and the indexes: the same, unless the manifest says that the tars lie elsewhere."""
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
        path = f"{self.index_storage.root}/{name}"
        try:
            return decode_index(self.index_storage.read_file(name), shard=shard, path=path)
        except UnreachableDataError:
            raise
        except DataError:  # once more: what is right in the store may have been damaged on its way
            return decode_index(self.index_storage.read_file(name), shard=shard, path=path)

    def io_counters(self) -> dict[str, int]:
        """What reading tars and indexes has cost in this process so far; see `Storage`."""
        counters = Counter(self.storage.io_counters())
        if self.manifest.shards_root is not None:  # otherwise both are read through one storage, which counted both
            counters.update(self.index_storage.io_counters())
        return dict(counters)


def open_dataset(path: str | Path, *, cache: CacheConfig | None = None) -> Dataset:
    """Open the data set in the folder or at the address `path`, reading its tars through `cache` if one is given.

    Checks the manifest and, in a local folder, the size of every tar and index; in an object store, where each such question is
    a request, those of the first and the last tar. Contents are checked as they are read: an index by its sha256, samples
    by crc32. Raises `DataError` saying which file is missing or changed.
    """
    dataset = open_unchecked(path)
    _check_sizes(dataset)
    if cache is None:
        return dataset
    sizes = {shard.name: shard.bytes for shard in dataset.shards}
    blocks = BlockCache(cache.path, max_bytes=cache.max_bytes)
    return replace(dataset, storage=CachedStorage(dataset.storage, cache=blocks, identity=dataset.sha256, sizes=sizes))


def open_unchecked(path: str | Path) -> Dataset:
    """Open a data set of which shards may be missing or damaged: the manifest alone is checked. For tools that look for damage."""
    storage = open_storage(path)
    if isinstance(storage, LocalStorage):
        _check_folder(Path(path))
    raw = storage.read_file(MANIFEST_NAME)
    manifest = decode_manifest(raw, path=f"{storage.root}/{MANIFEST_NAME}")
    starts = tuple(itertools.accumulate((shard.num_samples for shard in manifest.shards), initial=0))
    return Dataset(
        storage=_shards_storage(manifest, beside=storage),
        index_storage=storage,
        manifest=manifest,
        sha256=hashlib.sha256(raw).hexdigest(),
        shard_starts=starts,
    )


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise DataError(f"{path}: no such data set folder. Give the folder that `vitscale-data pack` wrote (it holds {MANIFEST_NAME}).")
    if not (path / MANIFEST_NAME).is_file():
        raise DataError(f"{path}: not a packed data set, it has no {MANIFEST_NAME}. {_advice(path)}")


def _advice(path: Path) -> str:
    """A folder of data sets, one per split, is the likely slip: name them."""
    inside = sorted(child.parent.name for child in path.glob(f"*/{MANIFEST_NAME}"))
    if inside:
        return f"Give one of the data sets inside it: {', '.join(str(path / name) for name in inside)}."
    return "Make one with `vitscale-data pack`, or give the folder that it wrote."


def _shards_storage(manifest: Manifest, *, beside: Storage) -> Storage:
    """Where the manifest says that the tars lie; a relative folder counts from the manifest's."""
    root = manifest.shards_root
    if root is None:
        return beside
    if is_address(root):
        return open_storage(root)
    if not isinstance(beside, LocalStorage):
        raise DataError(
            f"{beside.root}/{MANIFEST_NAME}: names a folder of some machine for its tars ({root!r}), which an address cannot. "
            "Index the tars where the manifest shall lie, or copy the manifest and the indexes to a local folder."
        )
    return LocalStorage(Path(beside.root) / root)


def _check_sizes(dataset: Dataset) -> None:
    """The sizes of the files of all shards (the tars of the outermost two in a store). The first difference found is raised."""
    shards = dataset.shards
    is_local = isinstance(dataset.storage, LocalStorage)
    _in_threads(functools.partial(_check_tar, storage=dataset.storage), shards if is_local else shards[:: max(1, len(shards) - 1)])
    if isinstance(dataset.index_storage, LocalStorage):
        _in_threads(functools.partial(_check_index, storage=dataset.index_storage), shards)


def _in_threads(check: Callable[[Shard], None], shards: Sequence[Shard]) -> None:
    """Each check waits for a file system that may be far away: a few at once, in tasks that are worth a thread's while."""
    tasks = [shards[start : start + _SHARDS_PER_TASK] for start in range(0, len(shards), _SHARDS_PER_TASK)]

    def check_all(task: Sequence[Shard]) -> None:
        for shard in task:
            check(shard)

    if len(tasks) == 1:
        check_all(tasks[0])
        return
    with ThreadPoolExecutor(_CHECK_THREADS) as pool:
        for _ in pool.map(check_all, tasks):
            pass


def _check_tar(shard: Shard, *, storage: Storage) -> None:
    actual = storage.size(shard.name)
    if actual != shard.bytes:
        raise DataError(
            f"{storage.root}/{shard.name}: changed since the data set was packed: {actual} bytes, "
            f"the manifest says {shard.bytes}. Restore the file from a copy or pack the data set again."
        )


def _check_index(shard: Shard, *, storage: Storage) -> None:
    name = index_name(shard.name)
    actual = storage.size(name)
    # The rows and a header, whose length is up to the numpy that wrote it.
    smallest = shard.num_samples * INDEX_DTYPE.itemsize
    if not smallest < actual <= smallest + _LONGEST_HEADER:
        raise DataError(
            f"{storage.root}/{name}: changed since the data set was packed: {actual} bytes, which cannot be the index of "
            f"{shard.num_samples} samples. Restore the file from a copy or pack the data set again."
        )
