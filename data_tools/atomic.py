"""Files that are replaced as a whole, and the lock of a working folder that outlives a killed command."""

import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscale.config import DataError, UsageError

_LOCK_NAME = "lock"


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, flushed to disk; whoever looks sees the old file or the new one. Raises `OSError`."""
    draft = path.with_name(f".{path.name}.partial")
    with open(draft, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def replace_array(path: Path, array: npt.NDArray[Any]) -> None:
    """`replace_file` with a .npy file, no pickle. Raises `OSError`."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    replace_file(path, stream.getvalue())


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
    descriptor = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder}: another process is working there. Wait for it, or give another folder.") from None
        yield
    finally:
        os.close(descriptor)
