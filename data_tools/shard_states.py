"""Tells whether files of a data set may have changed between two runs of a command."""

import functools
import hashlib
import os
from collections.abc import Mapping

from vitscale.config import DataError
from vitscale.data.dataset import Dataset
from vitscale.data.index import index_name
from vitscale.data.manifest import Shard
from vitscale.data.storage.storage import LocalStorage, Storage

_CACHED_SHARDS = 1024


class ShardStates:
    """Short texts that change when a shard's tar or index is written anew; for one run of a command.

    An HTTP server, or a bucket of which one may read files but not the list of them, shows no changes: there a text says
    nothing, and `show_changes` is False.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._of_shard = functools.lru_cache(maxsize=_CACHED_SHARDS)(self._look)
        self._tars = _Versions(dataset.storage)
        self._indexes = self._tars if dataset.manifest.shards_root is None else _Versions(dataset.index_storage)

    @property
    def show_changes(self) -> bool:
        return self._tars.show_changes and self._indexes.show_changes

    def of(self, first: int, stop: int) -> str:
        """The state of all shards that hold the samples [first, stop)."""
        states = [self._of_shard(span.shard) for span in self._dataset.spans(first, stop)]
        return hashlib.sha256(" ".join(states).encode()).hexdigest()[:16]

    def _look(self, shard: Shard) -> str:
        return f"{self._tars.of(shard.name)} {self._indexes.of(index_name(shard.name))}"


class _Versions:
    """Of single files of a storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @property
    def show_changes(self) -> bool:
        return isinstance(self._storage, LocalStorage) or self._listed is not None

    def of(self, name: str) -> str:
        if isinstance(self._storage, LocalStorage):
            return _on_disk(os.path.join(self._storage.root, name))
        return "-" if self._listed is None else self._listed.get(name, "missing")

    @functools.cached_property
    def _listed(self) -> Mapping[str, str] | None:
        """All at once: asking a store for a file is a request, and so is asking for the next thousand names."""
        try:
            return {file.name: f"{file.size}:{file.version}" for file in self._storage.list_files("")}
        except DataError:  # what reads the files says what is the matter, if anything is
            return None


def _on_disk(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        return f"missing:{error.errno}"
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
