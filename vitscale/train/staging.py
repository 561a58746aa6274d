"""A folder that appears under its name when it is whole, and not at all where anything before that fails."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from vitscale.checkpoint.durable import create_folder, sync_folder
from vitscale.config import ConfigError, UsageError


@contextlib.contextmanager
def staged_folder(final: Path, *, replaceable: Sequence[str] = ()) -> Iterator[Path]:
    """Give an empty folder beside `final` to fill, which takes that name when the block ends without an error.

    An older folder there is replaced if it holds files called as in `replaceable` only. Raises `UsageError` for any other, and
    `ConfigError` where the disk cannot be written.
    """
    if final.exists() and not _is_replaceable(final, replaceable):
        raise UsageError(f"{final}: is there already, and holds something else; give another folder, or move this one away")
    final = final.absolute()
    partial = final.with_name(f".{final.name}.tmp-{secrets.token_hex(4)}")
    try:
        create_folder(final.parent)
        partial.mkdir()
        yield partial
        if final.exists():
            old = final.with_name(f".{final.name}.old-{secrets.token_hex(4)}")
            os.rename(final, old)
            os.rename(partial, final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(partial, final)
        sync_folder(final.parent)
    except OSError as error:
        raise ConfigError(f"{final}: cannot be written: {error.strerror or error}. Give another folder, on a disk with space.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_replaceable(folder: Path, names: Sequence[str]) -> bool:
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= set(names)
