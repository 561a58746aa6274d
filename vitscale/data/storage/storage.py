"""The one seam through which data sets are read: byte ranges of named files under a root."""

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from vitscale.config import DataError
from vitscale.data.storage.io_counters import IoCounters
from vitscale.data.storage.object_store import ObjectStorage
from vitscale.data.storage.store_address import is_address

_OPEN_FILES = 64


class Storage(Protocol):
    """Files of one data set, read by name. Picklable; safe to use from threads and after a fork."""

    @property
    def root(self) -> str:
        """Where the files lie, for messages."""
        ...

    def size(self, name: str) -> int:
        """Bytes of the file. Raises `DataError` when it is missing."""
        ...

    def read_file(self, name: str) -> bytes:
        """The whole file. Raises `DataError` when it is missing or unreadable."""
        ...

    def read_range(self, name: str, *, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` on. Raises `DataError` when the file is missing, unreadable or shorter."""
        ...

    def read_again(self, name: str, *, offset: int, length: int) -> bytes:
        """`read_range` past every cache, which also forgets the range: for a reader that found the bytes damaged."""
        ...

    def list_names(self, suffix: str) -> list[str]:
        """Names below the root that end in `suffix`, with slashes, sorted. Raises `DataError` when it cannot be listed."""
        ...

    def io_counters(self) -> dict[str, int]:
        """What has been done through this object in this process: `reads`, `bytes_read`, and where there is such a thing `retries`,
        `cache_hits`, `cache_misses` and `cache_failures`."""
        ...


def open_storage(root: str | Path) -> Storage:
    """The storage for a local folder or an address (`s3://bucket/prefix`, `gs://`, `az://`, `http(s)://`); nothing is read yet.

    Raises `DataError` for other schemes, for an address that holds credentials and where the package that reads from
    stores is missing.
    """
    if isinstance(root, str) and is_address(root):
        return ObjectStorage(root)
    return LocalStorage(Path(root))


class LocalStorage:
    """Files of a local folder, with a small cache of open files."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._counters = IoCounters("reads", "bytes_read")
        self._forget()

    @property
    def root(self) -> str:
        return str(self._root)

    def size(self, name: str) -> int:
        try:
            return os.stat(f"{self._root}/{name}").st_size  # not Path: opening a data set asks for every file
        except OSError as error:
            raise self._unreadable(name, error) from None

    def read_file(self, name: str) -> bytes:
        try:
            return (self._root / name).read_bytes()
        except OSError as error:
            raise self._unreadable(name, error) from None

    def read_range(self, name: str, *, offset: int, length: int) -> bytes:
        try:
            file = self._open(name)
            data = os.pread(file.descriptor, length, offset)
            while len(data) < length:  # one call returns at most 2 GiB
                more = os.pread(file.descriptor, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise self._unreadable(name, error) from None
        if len(data) != length:
            raise DataError(
                f"{self._root / name}: cut short, {len(data)} of the {length} bytes at offset {offset} are there. "
                "Restore the file from a copy or pack the data set again."
            )
        self._counters.add(reads=1, bytes_read=length)
        return data

    def read_again(self, name: str, *, offset: int, length: int) -> bytes:
        return self.read_range(name, offset=offset, length=length)

    def list_names(self, suffix: str) -> list[str]:
        try:
            paths = [path for path in self._root.rglob(f"*{suffix}") if path.is_file()]
        except OSError as error:
            raise self._unreadable("", error) from None
        return sorted(path.relative_to(self._root).as_posix() for path in paths)

    def io_counters(self) -> dict[str, int]:
        return self._counters.values()

    def __reduce__(self) -> tuple[type["LocalStorage"], tuple[Path]]:
        return LocalStorage, (self._root,)

    def _open(self, name: str) -> "_OpenFile":
        if self._process != os.getpid():
            self._forget()
        with self._lock:
            file = self._files.pop(name, None) or _OpenFile(self._root / name)
            self._files[name] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
            return file

    def _forget(self) -> None:
        """Start with an empty cache; after a fork also with a lock that no thread of the parent can be holding."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()

    def _unreadable(self, name: str, error: OSError) -> DataError:
        return DataError(
            f"{self._root / name}: cannot be read: {error.strerror}. "
            "Check the data set's path, restore the file from a copy or pack the data set again."
        )


class _OpenFile:
    """A descriptor that is closed with its last user, so that dropping it from the cache cannot close it under a reader."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        descriptor = getattr(self, "descriptor", None)
        if descriptor is not None:
            os.close(descriptor)
