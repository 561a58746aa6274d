"""A folder that appears under its name complete or not at all, whatever happens while it is written."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitscale.config import DataError, UsageError

_LOCK_NAME = "vitscale-pack.lock"


@contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """Give a fresh folder to fill; on success it is flushed to disk and renamed to `output`, otherwise removed.

    The work happens in `OUTPUT.partial`, which a killed process leaves behind and the next one clears. Raises `UsageError`
    when `output` is taken or being written by another process, `DataError` when the disk is full or not writable.
    """
    output = Path(os.path.abspath(output))
    partial = output.with_name(f"{output.name}.partial")
    with disk_errors(output):
        check_free(output)
        lock = _claim(partial, output=output)
        try:
            contents = partial / "contents"
            shutil.rmtree(contents, ignore_errors=True)
            contents.mkdir()
            yield contents
            _flush_tree(contents)
            os.rename(contents, output)
            _flush(output.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


def check_free(output: Path) -> None:
    """Raise `UsageError` unless `output` is absent or an empty folder."""
    with disk_errors(output):
        is_free = not any(output.iterdir()) if output.is_dir() else not (output.exists() or output.is_symlink())
    if not is_free:
        raise UsageError(f"{output}: exists already and is not overwritten. Give another OUTPUT, or remove it first.")


@contextmanager
def disk_errors(output: Path) -> Iterator[None]:
    """Turn a failure of the disk into a `DataError` that names `output`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{output}: cannot be written: {error.strerror or error}. Nothing was left there. "
            "Free or choose a disk with enough room and permission, and run the command again."
        ) from error


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and flush it to disk."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _claim(partial: Path, *, output: Path) -> int:
    """Lock the working folder; the kernel drops the lock with the process, however it ends."""
    if partial.exists() and any(partial.iterdir()) and not (partial / _LOCK_NAME).exists():
        raise UsageError(f"{partial}: in the way, and not left by an earlier pack. Move it elsewhere or give another OUTPUT.")
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between open and lock another process may have finished here and removed or published everything.
        if not os.path.samestat(os.fstat(lock), os.stat(partial / _LOCK_NAME)):
            raise FileNotFoundError
        check_free(output)
    except (BlockingIOError, FileNotFoundError):
        os.close(lock)
        raise UsageError(f"{output}: another process is packing into it. Wait for it, or give another OUTPUT.") from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _flush_tree(folder: Path) -> None:
    """Flush the folders; the files were flushed when they were written."""
    for current, _, _ in os.walk(folder, topdown=False):
        _flush(Path(current))


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
