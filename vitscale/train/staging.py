"""A folder that appears under its name when it is whole, and not at all where anything before that fails."""

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from vitscale.checkpoint.durable import create_folder, sync_folder
from vitscale.config import ConfigError, UsageError


@contextlib.contextmanager
def staged_folder(final: Path, *, replaceable: Sequence[str] = (), signature: tuple[str, str] | None = None) -> Iterator[Path]:
    """Give an empty folder beside `final` to fill, which takes that name when the block ends without an error.

    An older folder there is replaced if it is empty, or holds files called as in `replaceable` only and the text of `signature` in
    the file that this names. What a killed process has left beside it is removed. Raises `UsageError` for any other folder, and
    `ConfigError` where the disk cannot be written.
    """
    check_final(final, replaceable=replaceable, signature=signature)
    final = final.absolute()
    with scratch_folder(final) as partial:
        yield partial
        if final.exists():
            old = final.with_name(f".{final.name}.old-{secrets.token_hex(4)}")
            os.rename(final, old)
            os.rename(partial, final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(partial, final)
        sync_folder(final.parent)


def check_final(final: Path, *, replaceable: Sequence[str] = (), signature: tuple[str, str] | None = None) -> None:
    """Raise as `staged_folder` does where `final` is taken, or, as far as can be told without writing, cannot be written."""
    if final.exists() and not _is_replaceable(final, replaceable, signature=signature):
        raise UsageError(f"{final}: is there already, and holds something else; give another folder, or move this one away")
    above = next(path for path in final.absolute().parents if path.exists())
    if not above.is_dir():
        raise ConfigError(f"{final}: cannot be written: {above} is no folder. Give another folder, on a disk with space.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{final}: cannot be written: {above} is read-only here. Give another folder, on a disk with space.")


@contextlib.contextmanager
def scratch_folder(final: Path) -> Iterator[Path]:
    """Give an empty folder beside `final`, on the same disk, which is removed at the end, with what was created above it for nothing.

    Raises `ConfigError` where the disk cannot be written.
    """
    final = final.absolute()
    partial = final.with_name(f".{final.name}.tmp-{secrets.token_hex(4)}")
    created = [path for path in final.parents if not path.exists()]
    try:
        create_folder(final.parent)
        _remove_abandoned(final)
        partial.mkdir()
        with _lock_of(partial):
            yield partial
    except OSError as error:
        raise ConfigError(f"{final}: cannot be written: {error.strerror or error}. Give another folder, on a disk with space.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # the first that holds something, from below, ends it
            for path in created:
                path.rmdir()


def _is_replaceable(folder: Path, names: Sequence[str], *, signature: tuple[str, str] | None) -> bool:
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else None
    if found is None or not found <= set(names):
        return False
    if not found or signature is None:
        return True
    name, text = signature
    return name in found and text in (folder / name).read_text(encoding="utf-8", errors="replace")


def _remove_abandoned(final: Path) -> None:
    """Whoever fills such a folder holds a lock on it, which ends with the process."""
    for path in final.parent.glob(f".{glob.escape(final.name)}.tmp-*"):
        with _lock_of(path) as is_ours:
            if is_ours:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _lock_of(folder: Path) -> Iterator[bool]:
    """Whether this process got the lock, which disks of a network may not give to anybody."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = True
    except OSError:
        is_ours = False
    try:
        yield is_ours
    finally:
        os.close(descriptor)
