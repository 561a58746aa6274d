"""A folder that appears under its name complete or not at all, whatever happens while it is written."""

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vitscale.config import DataError, UsageError

from .atomic import flush_folder, write_durably

_LOCK_NAME = "vitscale-pack.lock"


@dataclass(frozen=True, kw_only=True)
class Staging:
    """The working folder of one attempt after another: what is done, what is recorded as done, and what is half done."""

    root: Path
    has_discarded_others: bool = False
    """Attempts at another plan had finished something, which was cleared away."""

    @property
    def contents(self) -> Path:
        """Becomes the output."""
        return self.root / "contents"

    @property
    def records(self) -> Path:
        return self.root / "records"

    @property
    def scratch(self) -> Path:
        """For files that are not whole yet; on the same disk, so that they can be moved into `contents`."""
        return self.root / "scratch"

    def record(self, name: str, text: str) -> None:
        """Remember durably that the file `name` of the contents is whole; `text` says what is known about it."""
        scratch = self.scratch / f"record.{secrets.token_hex(8)}"
        write_durably(scratch, text.encode())
        os.replace(scratch, self._record_path(name))
        flush_folder(self.records)

    def recorded(self, name: str) -> str | None:
        """The text that was recorded, in this attempt or an earlier one."""
        try:
            return self._record_path(name).read_text()
        except FileNotFoundError:
            return None

    def has_records(self) -> bool:
        return self.records.is_dir() and any(self.records.iterdir())

    def _record_path(self, name: str) -> Path:
        return self.records / f"{name.replace('/', '+')}.json"


@contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """Give a fresh folder to fill; on success it is flushed to disk and renamed to `output`, otherwise removed.

    The work happens in `OUTPUT.partial`, which a killed process leaves behind and the next one clears. Raises `UsageError`
    when `output` is taken or being written by another process, `DataError` when the disk is full or not writable.
    """
    output, partial = Path(os.path.abspath(output)), partial_folder(output)
    with disk_errors(output), _claimed(partial, output=output):
        staging = Staging(root=partial / "fresh")
        _keep_only(None, partial=partial)
        _make(staging)
        try:
            yield staging.contents
            _flush_files(staging.contents)
            _publish(staging, output=output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def resumable_folder(output: Path, *, plan_digest: str) -> Iterator[Staging]:
    """Like `staged_folder`, but what is recorded as whole outlasts a failure or a kill, for the next attempt at the same plan.

    Attempts at another plan are cleared away. Where nothing was recorded, nothing is left.
    """
    output, partial = Path(os.path.abspath(output)), partial_folder(output)
    with disk_errors(output, kept_in=partial), _claimed(partial, output=output):
        # A process of an earlier attempt that has not ended yet finds the folder of its own plan, or none.
        root = partial / hashlib.sha256(plan_digest.encode()).hexdigest()[:16]
        others = [Staging(root=entry) for entry in partial.iterdir() if entry != root]
        staging = Staging(root=root, has_discarded_others=any(other.has_records() for other in others))
        _keep_only(root, partial=partial)
        shutil.rmtree(staging.scratch, ignore_errors=True)
        _make(staging)
        published = False
        try:
            yield staging
            _publish(staging, output=output)
            published = True
        finally:
            is_kept = staging.has_records() and not published
            shutil.rmtree(staging.scratch if is_kept else partial, ignore_errors=True)


def partial_folder(output: Path) -> Path:
    """Where the work on `output` happens."""
    output = Path(os.path.abspath(output))
    return output.with_name(f"{output.name}.partial")


def check_free(output: Path) -> None:
    """Raise `UsageError` unless `output` is absent or an empty folder."""
    with disk_errors(output):
        is_free = not any(output.iterdir()) if output.is_dir() else not (output.exists() or output.is_symlink())
    if not is_free:
        raise UsageError(f"{output}: exists already and is not overwritten. Give another OUTPUT, or remove it first.")


@contextmanager
def disk_errors(output: Path, *, kept_in: Path | None = None) -> Iterator[None]:
    """Turn a failure of the disk into a `DataError` that names `output`, and `kept_in` where that was left."""
    try:
        yield
    except OSError as error:
        left = "Nothing was left there. "
        if kept_in is not None and kept_in.exists():
            left = f"The shards that were whole are kept in {kept_in}, and the same command goes on from them; delete it to give up. "
        raise DataError(
            f"{output}: cannot be written: {error.strerror or error}. {left}"
            "Free or choose a disk with enough room and permission, and run the command again."
        ) from error


@contextmanager
def _claimed(partial: Path, *, output: Path) -> Iterator[None]:
    check_free(output)
    lock = _claim(partial, output=output)
    try:
        yield
    finally:
        os.close(lock)


def _claim(partial: Path, *, output: Path) -> int:
    """Lock the working folder; the kernel drops the lock with the process, however it ends."""
    if partial.exists() and any(partial.iterdir()) and not (partial / _LOCK_NAME).exists():
        raise UsageError(f"{partial}: in the way, and not left by an earlier attempt. Move it elsewhere or give another OUTPUT.")
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
        raise UsageError(f"{output}: another process is writing it. Wait for it, or give another OUTPUT.") from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _keep_only(root: Path | None, *, partial: Path) -> None:
    """Clear away what earlier attempts left, but `root`."""
    for entry in partial.iterdir():
        if entry.name != _LOCK_NAME and entry != root:
            shutil.rmtree(entry)


def _make(staging: Staging) -> None:
    for folder in (staging.contents, staging.records, staging.scratch):
        folder.mkdir(parents=True, exist_ok=True)


def _flush_files(folder: Path) -> None:
    for current, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(current, name), "rb") as file:
                os.fsync(file.fileno())


def _publish(staging: Staging, *, output: Path) -> None:
    """Flush the folders, whose files were flushed before, and give the contents their name."""
    for current, _, _ in os.walk(staging.contents, topdown=False):
        flush_folder(Path(current))
    os.rename(staging.contents, output)
    flush_folder(output.parent)
