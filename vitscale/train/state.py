"""TrainState: the small host state of a run, saved with every checkpoint."""

from dataclasses import dataclass
from typing import Any

from vitscale.checkpoint.config_hash import config_hash
from vitscale.config import CheckpointError
from vitscale.optim.schedules import learning_rate
from vitscale.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """How far a run has come: optimizer steps done and training samples consumed.

    The data cursor is `samples` itself and every random draw is keyed by what it is for, so this is all a resume needs.
    """

    step: int = 0
    samples: int = 0

    def advance(self, num_samples: int) -> "TrainState":
        """The state after one optimizer step on `num_samples` samples."""
        return TrainState(step=self.step + 1, samples=self.samples + num_samples)


def last_step(start: TrainState, *, num_samples: int, global_batch: int) -> int:
    """The step at which a run of `num_samples` that goes on from `start` ends. Batches before `start` may have had another size."""
    return start.step + max(0, num_samples - start.samples) // global_batch


def host_state(
    state: TrainState, *, config: RunConfig, data: dict[str, Any], lost: list[dict[str, Any]], skipped_in_a_row: int
) -> dict[str, Any]:
    """The JSON kept in a checkpoint. `data` identifies the data set and the order, `lost` is the ledger of replaced samples,
    `skipped_in_a_row` counts the steps up to this one that were skipped one after another; the cursor counts samples over all
    epochs, `schedule` is the point of the learning rate's that the next step begins at."""
    rng = {"scheme": "counter", "seed": config.seed, "keys": ["seed, view, sample id", "seed, step, rank", "seed, parameter name"]}
    cursor = {**data, "consumed": state.samples}
    total = config.train.num_samples
    rate = learning_rate(config.optim, samples=min(state.samples, total), total_samples=total)
    schedule = {"kind": config.optim.schedule.kind, "samples": state.samples, "total_samples": total, "lr": rate}
    return {
        "step": state.step,
        "samples": state.samples,
        "cursor": cursor,
        "rng": rng,
        "schedule": schedule,
        "config_hash": config_hash(config),
        "lost": lost,
        "skipped_in_a_row": skipped_in_a_row,
    }


def read_host_state(saved: dict[str, Any], *, data: dict[str, Any], where: str) -> TrainState:
    """The state kept in a checkpoint at `where`. Raises `CheckpointError` when it belongs to another data set or order."""
    cursor = saved["cursor"]
    changed = [key for key, value in data.items() if cursor.get(key) != value]
    if changed:
        detail = "; ".join(f"{key} was {cursor.get(key)!r} and is {data[key]!r}" for key in changed)
        raise CheckpointError(
            f"{where}: this checkpoint continues another data set or order than the configuration names ({detail})."
            " Restore the data set it was trained on, or start a new run under another name."
        )
    return TrainState(step=int(saved["step"]), samples=int(saved["samples"]))
