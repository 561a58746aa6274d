"""How far a run has come, read from its directory by somebody who does not take part in it."""

import json
from dataclasses import dataclass
from pathlib import Path

from vitscale.checkpoint.layout import list_step_folders
from vitscale.checkpoint.manifest import read_manifest
from vitscale.config import CheckpointError
from vitscale.train.run_dir import RunDirectory

_TAIL_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The step of the newest committed checkpoint and the last step in metrics.jsonl, each 0 where there is none."""

    committed: int
    reached: int


def read_progress(run_dir: Path) -> Progress:
    """Look at the run in `run_dir`, at the cost of a manifest and the end of a log. Nothing is hashed, nothing is changed."""
    directory = RunDirectory(root=run_dir)
    return Progress(committed=_newest_committed(directory.checkpoints), reached=_last_logged(directory.metrics))


def _newest_committed(checkpoints: Path) -> int:
    try:
        folders = list_step_folders(checkpoints)
    except OSError:
        return 0
    for folder in folders:
        if folder.role != "partial":
            try:
                read_manifest(folder.path)
            except (CheckpointError, OSError):
                continue
            return folder.step
    return 0


def _last_logged(metrics: Path) -> int:
    try:
        with open(metrics, "rb") as file:
            file.seek(max(0, metrics.stat().st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # the torn line of a killed process, or one that began before the tail
            continue
    return 0
