"""Tells whether files of a data set may have changed between two runs of a command."""

import functools
import hashlib
import os

from vitscale.data.dataset import Dataset
from vitscale.data.index import index_name
from vitscale.data.manifest import Shard
from vitscale.data.storage.storage import LocalStorage, Storage

_CACHED_SHARDS = 1024


class ShardStates:
    """Short texts that change with the size or the time of change of a shard's tar or index; for one run of a command.

    An object store has no such times in reach. There a text says nothing, and `show_changes` is False.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._of_shard = functools.lru_cache(maxsize=_CACHED_SHARDS)(self._look)

    @property
    def show_changes(self) -> bool:
        return all(isinstance(storage, LocalStorage) for storage in (self._dataset.storage, self._dataset.index_storage))

    def of(self, first: int, stop: int) -> str:
        """The state of all shards that hold the samples [first, stop)."""
        states = [self._of_shard(span.shard) for span in self._dataset.spans(first, stop)]
        return hashlib.sha256(" ".join(states).encode()).hexdigest()[:16]

    def _look(self, shard: Shard) -> str:
        tar, index = self._dataset.storage, self._dataset.index_storage
        return f"{_state(tar, shard.name)} {_state(index, index_name(shard.name))}"


def _state(storage: Storage, name: str) -> str:
    if not isinstance(storage, LocalStorage):
        return "-"
    try:
        status = os.stat(os.path.join(storage.root, name))
    except OSError as error:
        return f"missing:{error.errno}"
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
