"""Where checkpoints lie in a run directory and what their files are called."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitscale.checkpoint.durable import disk_errors

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.json"
CONFIG = "config.yaml"

Role = Literal["committed", "replaced", "partial"]
"""committed: a whole checkpoint. replaced: a committed one that a newer save of the same step is taking the place of.
partial: being written, or left behind by a process that died. A save adds a name of its own to it, so that two groups of
processes never write into the same folder, even if one of them does not know yet that the other has taken over."""

_SUFFIXES: dict[Role, str] = {"committed": "", "replaced": ".replaced", "partial": ".tmp"}
_FOLDER = re.compile(r"step-(\d{8,})(|\.replaced|\.tmp)(?:(?<=\.tmp)-[0-9a-f]+)?")


@dataclass(frozen=True, kw_only=True)
class StepFolder:
    """A folder of the checkpoints directory, as its name says; whether it is whole is for `verify` to say."""

    path: Path
    step: int
    role: Role


def step_folder(folder: Path, *, step: int, role: Role = "committed") -> Path:
    """The path of a step's checkpoint within the checkpoints directory `folder`."""
    return folder / f"step-{step:08d}{_SUFFIXES[role]}"


def save_folder(folder: Path, *, step: int) -> Path:
    """The path of a partial folder for one save of `step`, which nobody else has or will have."""
    partial = step_folder(folder, step=step, role="partial")
    return partial.with_name(f"{partial.name}-{secrets.token_hex(4)}")


def rank_file(rank: int) -> str:
    """The file that holds a rank's fragments."""
    return f"rank-{rank:05d}.safetensors"


def parse_step_folder(path: Path) -> StepFolder | None:
    """What the name of `path` says; None where it is not that of a checkpoint folder."""
    match = _FOLDER.fullmatch(path.name)
    roles = {suffix: role for role, suffix in _SUFFIXES.items()}
    return StepFolder(path=path, step=int(match[1]), role=roles[match[2]]) if match else None


def list_step_folders(folder: Path) -> list[StepFolder]:
    """Every checkpoint folder in `folder`, newest step first; of one step the committed one first. Empty if there is none.

    Raises `CheckpointError` when the folder is there and cannot be read.
    """
    order = list(_SUFFIXES)
    with disk_errors():
        found = list(_step_folders(folder)) if folder.is_dir() else []
    return sorted(found, key=lambda entry: (-entry.step, order.index(entry.role)))


def _step_folders(folder: Path) -> Iterator[StepFolder]:
    for path in folder.iterdir():
        entry = parse_step_folder(path)
        if entry is not None and path.is_dir():
            yield entry
