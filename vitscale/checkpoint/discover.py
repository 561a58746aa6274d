"""Finding the checkpoint to continue from: the newest one that is whole, and why anything newer was passed over."""

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vitscale.checkpoint.durable import disk_errors
from vitscale.checkpoint.foreign import explain_foreign, find_foreign
from vitscale.checkpoint.layout import CHECKPOINTS, MANIFEST, StepFolder, list_step_folders
from vitscale.checkpoint.manifest import FileEntry, Manifest, NewerVersionError, read_manifest
from vitscale.checkpoint.reader import check_size
from vitscale.config import CheckpointError

_HASHING_THREADS = 8
_READ_BYTES = 1 << 20


def nothing() -> None:
    """Show no life: nobody watches."""


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """A checkpoint folder that is newer than the one found and cannot be used; where none is found, also another program's."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """The newest whole checkpoint, None if there is none, and the newer folders that are not whole."""

    checkpoint: Path | None
    passed_over: tuple[PassedOver, ...]


def find_newest(folder: Path, *, deep: bool = True, show_life: Callable[[], None] = nothing) -> Found:
    """Look through the checkpoints directory `folder`, newest step first, until one passes `verify`.

    `deep` hashes every byte of the checkpoint that is found (about a second per GiB and core), while `show_life` is called from
    any thread, but one at a time; without it, only the sizes of its files are compared. Runs on one rank; the answer is for it
    to share. Raises `CheckpointError` where the folder cannot be read, and `NewerVersionError` instead of passing over a
    checkpoint that only a newer vitscale reads: what trained on would in the end replace it.
    """
    passed_over: list[PassedOver] = []
    for entry in list_step_folders(folder):
        try:
            _check_usable(entry, deep=deep, show_life=show_life)
            return Found(checkpoint=entry.path, passed_over=tuple(passed_over))
        except NewerVersionError as error:
            raise error.retold(f"{error}, or move its folder away to go on from an older one") from None
        except CheckpointError as error:
            passed_over.append(PassedOver(path=entry.path, reason=str(error)))
    passed_over.extend(_foreign(folder))
    return Found(checkpoint=None, passed_over=tuple(passed_over))


def verify(path: Path, *, deep: bool = True, report: Callable[[int], None] | None = None) -> Manifest:
    """Check that the checkpoint at `path` is whole and unchanged, and return its manifest. Raises `CheckpointError` if not.

    `deep` compares the sha256 of every file, else only sizes. `report` is told the bytes hashed so far, from any thread.
    """
    manifest = read_manifest(path)
    for entry in manifest.files:
        check_size(path / entry.name, expected=entry.bytes)
    if deep:
        advance = _Total(report).add
        with ThreadPoolExecutor(max_workers=min(_HASHING_THREADS, os.cpu_count() or 1)) as pool:
            for _ in pool.map(lambda entry: _check_hash(path, entry, advance=advance), manifest.files):
                pass
    return manifest


def why_unusable(entry: StepFolder) -> str | None:
    """Why nothing can be restored from a checkpoint folder; None where it is whole, as far as sizes tell."""
    try:
        _check_usable(entry, deep=False, show_life=nothing)
    except CheckpointError as error:
        return str(error)
    return None


def resolve_checkpoint(path: Path, *, deep: bool = True, show_life: Callable[[], None] = nothing) -> Path:
    """The checkpoint that a user's path means: the folder of one, or the newest whole one of a run directory.

    `deep` and `show_life` are those of `find_newest`. Raises `CheckpointError` when the path holds neither.
    """
    if (path / MANIFEST).is_file():
        verify(path, deep=deep, report=lambda _: show_life())
        return path
    with disk_errors():
        foreign = explain_foreign(path)
    if foreign is not None:
        raise CheckpointError(f"{path}: not a checkpoint of vitscale: {foreign}")
    found = find_newest(checkpoints_folder(path), deep=deep, show_life=show_life)
    if found.checkpoint is None:
        seen = "; ".join(f"{entry.path.name}: {entry.reason}" for entry in found.passed_over[:3])
        raise CheckpointError(
            f"{path}: no whole checkpoint here{f' ({seen})' if seen else ''}; give a run directory that has saved one,"
            " or the folder of a checkpoint"
        )
    return found.checkpoint


def checkpoints_folder(path: Path) -> Path:
    """The checkpoints directory that `path` is, or that a run directory at `path` has."""
    return path if list_step_folders(path) else path / CHECKPOINTS


def hash_file(path: Path, *, advance: Callable[[int], None] | None = None) -> str:
    """The sha256 of a file. `advance` is told the bytes of each part. Raises `CheckpointError` when it cannot be read."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            while length := file.readinto(buffer):
                digest.update(buffer[:length])
                if advance is not None:
                    advance(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


class _Total:
    """Adds up what threads report."""

    def __init__(self, report: Callable[[int], None] | None) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._total = 0

    def add(self, amount: int) -> None:
        if self._report is not None:
            with self._lock:
                self._total += amount
                self._report(self._total)


def _check_usable(entry: StepFolder, *, deep: bool, show_life: Callable[[], None]) -> None:
    if entry.role == "partial":
        raise CheckpointError("its save did not finish")
    verify(entry.path, deep=deep, report=lambda _: show_life())


def _foreign(folder: Path) -> list[PassedOver]:
    """What another program left where no checkpoint of ours is: starting over beside it would not be what its owner wants."""
    with disk_errors():
        paths = list(find_foreign(folder)) if folder.is_dir() else []
        return [PassedOver(path=path, reason=explain_foreign(path) or "") for path in paths]


def _check_hash(folder: Path, entry: FileEntry, *, advance: Callable[[int], None]) -> None:
    if hash_file(folder / entry.name, advance=advance) != entry.sha256:
        raise CheckpointError(f"{folder / entry.name}: its content changed since it was saved (sha256 differs from the manifest's)")
