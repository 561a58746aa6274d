"""The one seam through which data sets are read: byte ranges of named files under a root."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from vitscale.config import DataError
from vitscale.data.storage.io_counters import IoCounters
from vitscale.data.storage.local_errors import classify_local
from vitscale.data.storage.object_store import ObjectStorage
from vitscale.data.storage.open_files import OpenFiles
from vitscale.data.storage.retry import GaveUpError, RetryPolicy, retry
from vitscale.data.storage.store_address import is_address
from vitscale.data.types import StoredFile, UnreachableDataError

T = TypeVar("T")

# About five seconds at most. More would not help: a network file system has been patient by itself before it reports an error.
_POLICY = RetryPolicy(num_tries=8, first_pause_seconds=0.05, longest_pause_seconds=2.0, total_seconds=60.0)


class Storage(Protocol):
    """Files of one data set, read by name. Picklable; safe to use from threads and after a fork.

    Reading raises `DataError` where bytes are gone, which training replaces, and `UnreachableDataError`, a kind of it that stops
    the run, for whatever else keeps them from being read.
    """

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

    def list_files(self, suffix: str) -> list[StoredFile]:
        """Files below the root whose names end in `suffix`, by name. Raises `DataError` when it cannot be listed."""
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
    """Files of a local folder, or of one that a network file system mounts, a few of them kept open.

    What may pass (a process out of descriptors, a server that restarts) is waited for a little; see `local_errors`.
    """

    def __init__(self, root: Path, *, policy: RetryPolicy = _POLICY) -> None:
        self._root = root
        self._policy = policy
        self._counters = IoCounters("reads", "bytes_read", "retries")
        self._files = OpenFiles(root)

    @property
    def root(self) -> str:
        return str(self._root)

    def size(self, name: str) -> int:
        # Not Path: opening a data set asks for every file.
        return self._patiently(name, lambda: os.stat(f"{self._root}/{name}").st_size)

    def read_file(self, name: str) -> bytes:
        return self._patiently(name, (self._root / name).read_bytes)

    def read_range(self, name: str, *, offset: int, length: int) -> bytes:
        data = self._patiently(name, lambda: self._range(name, offset=offset, length=length))
        if len(data) != length:
            raise DataError(
                f"{self._root / name}: cut short, {len(data)} of the {length} bytes at offset {offset} are there. "
                "Restore the file from a copy or pack the data set again."
            )
        self._counters.add(reads=1, bytes_read=length)
        return data

    def read_again(self, name: str, *, offset: int, length: int) -> bytes:
        self._files.drop(name)
        self._counters.add(retries=1)
        return self.read_range(name, offset=offset, length=length)

    def list_files(self, suffix: str) -> list[StoredFile]:
        return self._patiently("", lambda: sorted(self._found(suffix), key=lambda file: file.name))

    def io_counters(self) -> dict[str, int]:
        return self._counters.values()

    def __reduce__(self) -> tuple[Callable[..., "LocalStorage"], tuple[Path, RetryPolicy]]:
        return _restore, (self._root, self._policy)

    def _range(self, name: str, *, offset: int, length: int) -> bytes:
        """The bytes of the range as far as the file reaches."""
        file = self._files.get(name)
        if file is not None:
            with contextlib.suppress(OSError):
                data = file.read(offset=offset, length=length)
                if len(data) == length:
                    return data
            # A descriptor stays with what it was opened for: the file may have been replaced since, or its server restarted.
            self._files.drop(name)
        return self._files.open(name).read(offset=offset, length=length)

    def _found(self, suffix: str) -> Iterator[StoredFile]:
        def fail(error: OSError) -> NoReturn:  # by default a folder that cannot be listed is passed over
            raise error

        for folder, _, files in os.walk(self._root, onerror=fail):
            for file in files:
                path = Path(folder, file)
                if file.endswith(suffix) and path.is_file():
                    status = path.stat()
                    yield StoredFile(
                        name=path.relative_to(self._root).as_posix(),
                        size=status.st_size,
                        version=f"{status.st_mtime_ns}:{status.st_ino}",
                    )

    def _patiently(self, name: str, read: Callable[[], T]) -> T:
        """The result of `read`, called again while what fails may pass. Raises `DataError`, `UnreachableDataError`."""

        def attempt() -> T:
            try:
                return read()
            except OSError as error:
                raise classify_local(error, root=self._root, name=name) from None

        def prepare_retry() -> None:
            self._counters.add(retries=1)
            self._files.clear()  # ours may be the descriptors that ran out, and those of a server that restarted are stale

        try:
            return retry(attempt, policy=self._policy, on_retry=prepare_retry)
        except GaveUpError as error:
            raise UnreachableDataError(
                f"{self._root / name}: could not be read: {error}. The file may well be whole: look after the limits of this process "
                "(ulimit -n), the rights and the mount, then start the same command again."
            ) from None


def _restore(root: Path, policy: RetryPolicy) -> LocalStorage:
    return LocalStorage(root, policy=policy)
