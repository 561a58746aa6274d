"""One file of a storage as a stream of bytes, for readers that know nothing but `read`."""

import io
from typing import Any

from vitscale.data.storage.storage import Storage

_BLOCK_BYTES = 4 * 2**20
"""Fetched with one ranged read."""


class StorageStream(io.RawIOBase):
    """Reads a file from its start to its end. Raises `DataError` where the storage does: a body cut short is an error here,
    never an end of file."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._block = memoryview(b"")
        self._fetched = 0
        self.size = storage.size(name)

    @property
    def position(self) -> int:
        """Bytes handed out so far."""
        return self._fetched - len(self._block)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the block at hand reaches; 0 at the end."""
        self._fetch()
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._block))
        target[:count] = self._block[:count]
        self._block = self._block[count:]
        return count

    def head(self, length: int) -> bytes:
        """The first `length` bytes, fewer where the block at hand has fewer; before anything else is read."""
        assert self.position == 0, self.position
        self._fetch()
        return bytes(self._block[:length])

    def tail(self, length: int) -> bytes:
        """The last `length` bytes of the file, fewer where it is shorter; does not move the stream."""
        length = min(length, self.size)
        return self._storage.read_range(self._name, offset=self.size - length, length=length) if length else b""

    def _fetch(self) -> None:
        length = min(_BLOCK_BYTES, self.size - self._fetched)
        if not self._block and length:
            self._block = memoryview(self._storage.read_range(self._name, offset=self._fetched, length=length))
            self._fetched += length
