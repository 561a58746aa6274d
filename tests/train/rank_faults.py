"""Trains runs whose numbers go wrong on rank 1, one after the other in one process group; run by test_numeric_faults.py.

Arguments: root folder, then a JSON list of jobs {"overrides": [...], "poison": [steps], "flip_after": step or null}. Steps count from 1.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from tests.collector import skip_imports
from tests.train.tiny_run import tiny_config
from vitscale import api
from vitscale.config import UserError
from vitscale.data.types import Batch
from vitscale.engine.engine import Engine, StepMetrics

_train_step = Engine.train_step


def main() -> None:
    """Do the jobs; print how each ended: the exit code that the command would have, and what the user would read."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    skip_imports()
    root = Path(sys.argv[1])
    print(json.dumps([_do(root, job) for job in json.loads(sys.argv[2])]))
    dist.destroy_process_group()


def _do(root: Path, job: dict[str, Any]) -> list[Any]:
    def train_step(engine: Engine, micro_batches: Sequence[Batch], *, step: int, lr: float) -> StepMetrics:
        if dist.get_rank() == 1 and step + 1 in job["poison"]:
            engine.poison_next_gradient()
        metrics = _train_step(engine, micro_batches, step=step, lr=lr)
        if dist.get_rank() == 1 and step + 1 == job["flip_after"]:
            engine.flip_weight_bit()
        return metrics

    config = tiny_config(root, *job["overrides"])
    with mock.patch.object(Engine, "train_step", train_step):
        try:
            api.train(config)
        except UserError as error:
            return [error.exit_code, str(error)]
    return [0, ""]


if __name__ == "__main__":
    main()
