"""A storage whose ranged reads go through a block cache: far data is fetched once per machine."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from vitscale.config import DataError
from vitscale.data.storage.block_cache import BlockCache
from vitscale.data.storage.io_counters import IoCounters
from vitscale.data.storage.storage import Storage
from vitscale.data.types import StoredFile, UnreachableDataError

BLOCK_BYTES = 4 << 20


class CachedStorage:
    """Reads of `storage` by aligned blocks through `cache`.

    `identity` (a manifest's sha256) keeps data sets apart. Ranged reads of the files in `sizes` (name to bytes) are cached;
    indexes, which readers keep in memory, and other files are not. A cache that fails costs time only. Picklable, safe to use
    from threads.
    """

    def __init__(
        self, storage: Storage, *, cache: BlockCache, identity: str, sizes: Mapping[str, int], block_bytes: int = BLOCK_BYTES
    ) -> None:
        self._storage = storage
        self._cache = cache
        self._identity = identity
        self._sizes = sizes
        self._block_bytes = block_bytes
        self._counters = IoCounters("cache_hits", "cache_misses", "cache_failures")

    @property
    def root(self) -> str:
        return self._storage.root

    def size(self, name: str) -> int:
        return self._storage.size(name)

    def read_file(self, name: str) -> bytes:
        return self._storage.read_file(name)

    def read_range(self, name: str, *, offset: int, length: int) -> bytes:
        size = self._sizes.get(name, 0)
        if length == 0 or offset + length > size:
            return self._storage.read_range(name, offset=offset, length=length)
        wanted = self._slices(offset, length=length, size=size)
        found = {piece.block: data for piece in wanted if (data := self._lookup(name, piece)) is not None}
        missing = [piece for piece in wanted if piece.block not in found]
        self._counters.add(cache_hits=len(wanted) - len(missing), cache_misses=len(missing))
        try:
            for run in _runs(missing):
                found.update(self._fetch(name, run))
        except UnreachableDataError:
            raise
        except DataError:
            # The blocks reach further than the range: what damages only the rest of them must not lose the range.
            return self._storage.read_range(name, offset=offset, length=length)
        return b"".join(found[piece.block] for piece in wanted)

    def read_again(self, name: str, *, offset: int, length: int) -> bytes:
        size = self._sizes.get(name, 0)
        if length and offset + length <= size:
            for piece in self._slices(offset, length=length, size=size):
                self._cache.drop(self._key(name, piece.block))
        return self._storage.read_again(name, offset=offset, length=length)

    def list_files(self, suffix: str) -> list[StoredFile]:
        return self._storage.list_files(suffix)

    def io_counters(self) -> dict[str, int]:
        return {**self._storage.io_counters(), **self._counters.values()}

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self._storage, self._cache, self._identity, self._sizes, self._block_bytes)

    def _slices(self, offset: int, *, length: int, size: int) -> list["_Slice"]:
        """The range cut at block boundaries."""
        stop = offset + length
        result = []
        for block in range(offset // self._block_bytes, -(-stop // self._block_bytes)):
            start = block * self._block_bytes
            block_length = min(self._block_bytes, size - start)
            result.append(
                _Slice(block=block, start=start, length=block_length, first=max(0, offset - start), stop=min(block_length, stop - start))
            )
        return result

    def _lookup(self, name: str, piece: "_Slice") -> memoryview | None:
        return self._cache.get(self._key(name, piece.block), length=piece.length, first=piece.first, stop=piece.stop)

    def _fetch(self, name: str, run: list["_Slice"]) -> dict[int, memoryview]:
        """Neighbouring blocks by one read, put into the cache and cut to what is wanted."""
        base = run[0].start
        data = memoryview(self._storage.read_range(name, offset=base, length=run[-1].start + run[-1].length - base))
        result = {}
        for piece in run:
            payload = data[piece.start - base : piece.start - base + piece.length]
            if not self._cache.put(self._key(name, piece.block), payload):
                self._counters.add(cache_failures=1)
            result[piece.block] = payload[piece.first : piece.stop]
        return result

    def _key(self, name: str, block: int) -> bytes:
        return hashlib.sha256(f"{self._identity}\n{name}\n{self._block_bytes}\n{block}".encode()).digest()


@dataclass(frozen=True, kw_only=True)
class _Slice:
    """What a read wants of one block: bytes [first, stop) of its `length` bytes, which lie at `start` of the file."""

    block: int
    start: int
    length: int
    first: int
    stop: int


def _runs(pieces: list[_Slice]) -> list[list[_Slice]]:
    """Neighbours together."""
    runs: list[list[_Slice]] = []
    for piece in pieces:
        if runs and runs[-1][-1].block + 1 == piece.block:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _restore(storage: Storage, cache: BlockCache, identity: str, sizes: Mapping[str, int], block_bytes: int) -> CachedStorage:
    return CachedStorage(storage, cache=cache, identity=identity, sizes=sizes, block_bytes=block_bytes)
