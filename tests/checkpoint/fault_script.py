"""Saves several steps on a disk that fails, and prints what it was told and which checkpoints are whole at the end."""

import contextlib
import json
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.checkpoint.simulation import FakeStore, make_tensors, open_saver
from vitscale.checkpoint.discover import verify
from vitscale.checkpoint.layout import list_step_folders
from vitscale.config import CheckpointError

_SHAPES: dict[str, tuple[int, ...]] = {"a": (100, 1000)}  # 400 kB a checkpoint


def main() -> None:
    secrets.token_hex = lambda _=None: "a1"  # the folder whose system calls fail is named beforehand
    folder, last_step = Path(sys.argv[1]), int(sys.argv[2])
    store = FakeStore(make_tensors(seed=1, shapes=_SHAPES, kinds=("weight",)), rank=0, world_size=1, zero_stage=1)
    saver = open_saver(store, folder=folder)
    errors = {}
    for step in range(1, last_step + 1):
        for outcome in [*saver.begin(step=step, state={}, config_text=""), *saver.finish()]:
            errors[outcome.step] = outcome.error
    saver.close()
    print(json.dumps({"errors": errors, "whole": list(_whole_steps(folder)), "names": sorted(path.name for path in folder.iterdir())}))


def _whole_steps(folder: Path) -> Iterator[int]:
    for entry in reversed(list_step_folders(folder)):
        with contextlib.suppress(CheckpointError):
            yield verify(entry.path).step


if __name__ == "__main__":
    main()
