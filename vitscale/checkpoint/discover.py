"""Finding the checkpoint to continue from: the newest one that is whole, and why anything newer was passed over."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vitscale.checkpoint.layout import CHECKPOINTS, MANIFEST, StepFolder, list_step_folders
from vitscale.checkpoint.manifest import FileEntry, Manifest, read_manifest
from vitscale.checkpoint.reader import check_size
from vitscale.config import CheckpointError

_HASHING_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """A checkpoint folder that is newer than the one found and cannot be used."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """The newest whole checkpoint, None if there is none, and the newer folders that are not whole."""

    checkpoint: Path | None
    passed_over: tuple[PassedOver, ...]


def find_newest(folder: Path, *, deep: bool = True) -> Found:
    """Look through the checkpoints directory `folder`, newest step first, until one passes `verify`.

    `deep` hashes every byte of the checkpoint that is found (about a second per GiB and core); without it, only the sizes
    of its files are compared. Runs on one rank; the answer is for it to share.
    """
    passed_over: list[PassedOver] = []
    for entry in list_step_folders(folder):
        reason = _why_unusable(entry, deep=deep)
        if reason is None:
            return Found(checkpoint=entry.path, passed_over=tuple(passed_over))
        passed_over.append(PassedOver(path=entry.path, reason=reason))
    return Found(checkpoint=None, passed_over=tuple(passed_over))


def verify(path: Path, *, deep: bool = True) -> Manifest:
    """Check that the checkpoint at `path` is whole and unchanged, and return its manifest. Raises `CheckpointError` if not.

    `deep` compares the sha256 of every file, else only sizes.
    """
    manifest = read_manifest(path)
    for entry in manifest.files:
        check_size(path / entry.name, expected=entry.bytes)
    if deep:
        with ThreadPoolExecutor(max_workers=min(_HASHING_THREADS, os.cpu_count() or 1)) as pool:
            for _ in pool.map(lambda entry: _check_hash(path, entry), manifest.files):
                pass
    return manifest


def resolve_checkpoint(path: Path, *, deep: bool = True) -> Path:
    """The checkpoint that a user's path means: the folder of one, or the newest whole one of a run directory.

    Raises `CheckpointError` when the path holds neither.
    """
    if (path / MANIFEST).is_file():
        verify(path, deep=deep)
        return path
    folder = path if list_step_folders(path) else path / CHECKPOINTS
    found = find_newest(folder, deep=deep)
    if found.checkpoint is None:
        seen = "; ".join(f"{entry.path.name}: {entry.reason}" for entry in found.passed_over[:3])
        raise CheckpointError(
            f"{path}: no whole checkpoint here{f' ({seen})' if seen else ''}; give a run directory that has saved one,"
            " or the folder of a checkpoint"
        )
    return found.checkpoint


def _why_unusable(entry: StepFolder, *, deep: bool) -> str | None:
    if entry.role == "partial":
        return "its save did not finish"
    try:
        verify(entry.path, deep=deep)
    except CheckpointError as error:
        return str(error)
    return None


def _check_hash(folder: Path, entry: FileEntry) -> None:
    path = folder / entry.name
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if digest != entry.sha256:
        raise CheckpointError(f"{path}: its content changed since it was saved (sha256 differs from the manifest's)")
