"""Files that are replaced as a whole and flushed to disk, and the lock of a working folder that outlives a killed command."""

import errno
import fcntl
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscale.config import DataError, UsageError
from vitscale.data.storage.store_address import SCHEMES

LOCK_NAME = "lock"


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, flushed to disk; whoever looks sees the old file or the new one. For one process at a time.

    Raises `OSError`, and then leaves nothing beside the old file.
    """
    draft = path.with_name(f".{path.name}.partial")
    try:
        with open(draft, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def replace_array(path: Path, array: npt.NDArray[Any]) -> None:
    """`replace_file` with a .npy file, no pickle. Raises `OSError`."""
    replace_file(path, encode_array(array))


def encode_array(array: npt.NDArray[Any]) -> bytes:
    """The bytes of a .npy file, no pickle."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and flush it to disk."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flush the names of the files in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_local(path: Path) -> None:
    """Raise `UsageError` for the address of a store, which as a path is a folder called `s3:`."""
    if path.parts[:1] in {(f"{scheme}:",) for scheme in SCHEMES}:
        raise UsageError(
            f"{str(path).replace(':/', '://', 1)}: an address, where a local path is wanted. Copy the files with a tool of the store."
            " Tars in one need no packing: vitscale-data index ADDRESS --output FOLDER."
        )


def check_output(path: Path) -> None:
    """Make the folder of a file to be, and raise `DataError` now where the file could not be written after hours of work.

    Raises `UsageError` for an address.
    """
    check_local(path)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass


@contextmanager
def output_errors(output: Path) -> Iterator[None]:
    """Turn a failure of the disk into a `DataError` that names `output`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{output}: cannot be written: {error.strerror or error}. "
            "Free or choose a disk with enough room and permission, and run the command again."
        ) from error


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make `folder` and hold its lock, which the kernel drops with the process. Raises `UsageError` while another one holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK_NAME
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and lock the one who held it may have finished, and removed the folder with this lock in it.
            if not os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                raise FileNotFoundError
        except (BlockingIOError, FileNotFoundError):
            raise UsageError(f"{folder}: another process is working there. Wait for it, or give another folder.") from None
        yield
    finally:
        os.close(descriptor)
