"""Which checkpoints stay and which are deleted."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from vitscale.checkpoint.discover import verify
from vitscale.checkpoint.layout import StepFolder, list_step_folders, step_folder
from vitscale.config import CheckpointError


def steps_to_delete(steps: Collection[int], *, keep: int) -> list[int]:
    """The steps beyond the `keep` newest, oldest first. `keep` is at least 1, so the newest always stays."""
    assert keep >= 1, keep
    return sorted(set(steps))[:-keep]


def prune(folder: Path, *, keep: int, saved: int) -> list[Path]:
    """Delete all but the `keep` newest whole checkpoints of the checkpoints directory `folder`; return what was deleted.

    `saved` is the step committed just now. Wholeness is judged by sizes, but what is newer than `saved` was passed over
    when the run resumed, whatever its size. Damaged folders do not count towards `keep`, and go once they are older than
    all that stays; leftovers of unfinished saves go once a newer or equal step is committed. Runs on one rank.
    """
    entries = list_step_folders(folder)
    whole = {entry.step for entry in entries if entry.role == "committed" and entry.step <= saved and _is_whole(entry.path)}
    if not whole:
        return []
    oldest_kept = min(whole - set(steps_to_delete(whole, keep=keep)))
    doomed = [entry for entry in reversed(entries) if _is_outdated(entry, oldest_kept=oldest_kept, newest=max(whole))]
    for entry in doomed:
        _delete(entry)
    return [entry.path for entry in doomed]


def _is_whole(path: Path) -> bool:
    try:
        verify(path, deep=False)
    except CheckpointError:
        return False
    return True


def _is_outdated(entry: StepFolder, *, oldest_kept: int, newest: int) -> bool:
    return entry.step < oldest_kept or (entry.role == "partial" and entry.step <= newest)


def _delete(entry: StepFolder) -> None:
    path = entry.path
    if entry.role == "committed":
        # Under the name of an unfinished save first: whoever looks while it is being deleted does not take it for damaged.
        path = step_folder(entry.path.parent, step=entry.step, role="partial")
        shutil.rmtree(path, ignore_errors=True)
        os.rename(entry.path, path)
    shutil.rmtree(path)
