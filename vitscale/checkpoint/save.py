"""Saving a checkpoint at once, for who has nothing to do meanwhile."""

from pathlib import Path
from typing import Any

from vitscale.checkpoint.fragments import ShardStore
from vitscale.checkpoint.layout import step_folder
from vitscale.checkpoint.saver import CheckpointSaver
from vitscale.config import CheckpointError


def save_checkpoint(store: ShardStore, *, folder: Path, step: int, state: dict[str, Any], config_text: str) -> Path:
    """Write the checkpoint of `step` into the checkpoints directory `folder`, where nothing is deleted; its path. Collective.

    Raises `CheckpointError` on all ranks when any of them fails; nothing is committed then.
    """
    saver = CheckpointSaver(store, folder=folder, in_background=False, check_owner=lambda: None, retention=None)
    try:
        (outcome,) = saver.begin(step=step, state=state, config_text=config_text)
    finally:
        saver.close()
    if outcome.error is not None:
        raise CheckpointError(outcome.error)
    return step_folder(folder, step=step)
