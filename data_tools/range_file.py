"""A stored file read from front to back in big ranges, with its sha256 taken on the way."""

import hashlib

from vitscale.data.storage.storage import Storage

_RANGE_BYTES = 16 << 20


class RangeFile:
    """Sequential reads of one file of any storage. `sha256` is that of the whole once `read` has come to the end."""

    def __init__(self, storage: Storage, name: str, *, size: int | None = None, range_bytes: int = _RANGE_BYTES) -> None:
        """`size` is asked for where it is not known."""
        self.size = storage.size(name) if size is None else size
        self._storage = storage
        self._name = name
        self._range_bytes = range_bytes
        self._fetched = 0
        self._buffer = memoryview(b"")
        self._digest = hashlib.sha256()

    @property
    def position(self) -> int:
        """Bytes that were read."""
        return self._fetched - len(self._buffer)

    @property
    def sha256(self) -> str:
        """Of what was fetched so far."""
        return self._digest.hexdigest()

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end. Raises `DataError` for what the storage cannot deliver."""
        parts = []
        while size:
            if not self._buffer and not self._fetch():
                break
            part = self._buffer[:size]
            self._buffer = self._buffer[len(part) :]
            parts.append(part)
            size -= len(part)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def _fetch(self) -> bool:
        length = min(self._range_bytes, self.size - self._fetched)
        if length == 0:
            return False
        raw = self._storage.read_range(self._name, offset=self._fetched, length=length)
        self._digest.update(raw)
        self._fetched += length
        self._buffer = memoryview(raw)
        return True
