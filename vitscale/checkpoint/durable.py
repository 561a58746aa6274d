"""Writes that survive a crash of the machine: data and directory entries are on disk when a call returns."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitscale.config import CheckpointError


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
