"""Writes that survive a crash of the machine: data and directory entries are on disk when a call returns."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vitscale.config import CheckpointError

WRITE_BACK_BYTES = 1 << 26
"""How much of a large file is written before the disk is asked to take it in: 64 MiB."""


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn a failure of the disk (full, unreadable, read-only) into a `CheckpointError` that names the file."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise CheckpointError(f"{where}{error.strerror or error}") from error


def write_durably(path: Path, data: bytes) -> None:
    """Create the file `path` with `data` and wait until it is on disk. The file must not exist."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class DurableStream:
    """A large new file, written front to back.

    The kernel would let dirty pages pile up and push out of its cache what training reads, and then hold up every write on the
    machine to get rid of them in one burst at the end. So each part is handed to the disk when it is complete, and its pages
    leave the cache once they are there. Nothing is allocated beforehand: where a file system cannot do it, the C library
    writes zeros instead, which doubles the bytes of a save; whether it fits is checked before it begins.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._written = 0
        self._handed_over = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        self._written += self._file.write(data)
        if self._written - self._handed_over >= WRITE_BACK_BYTES:
            self._file.flush()
            # Of pages that are dirty this starts the writing, of pages that are on disk it gives the memory back: so it is
            # asked for what is complete now and, once more, for everything before.
            os.posix_fadvise(self._file.fileno(), 0, self._written, os.POSIX_FADV_DONTNEED)
            self._handed_over = self._written

    def finish(self) -> int:
        """Wait until all of it is on disk; the size of the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return self._written


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on disk: a synced file in an unsynced folder may be gone after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_folder(folder: Path) -> None:
    """Create `folder` and its parents where missing, each durably."""
    if folder.is_dir():
        return
    create_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def rename_durably(source: Path, target: Path) -> None:
    """Rename within one directory and wait until the new name is on disk. `target` must not exist or be an empty folder."""
    assert source.parent == target.parent, (source, target)
    os.rename(source, target)
    sync_folder(target.parent)
