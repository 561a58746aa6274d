"""Evaluating a checkpoint outside of training: its weights in a plain module, without DeepSpeed, on any number of ranks."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitscale.checkpoint.discover import resolve_checkpoint
from vitscale.checkpoint.fragments import Kind
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import ConfigError
from vitscale.data.types import Batch
from vitscale.dist.agreement import jointly, on_main
from vitscale.engine.processes import init_process_group
from vitscale.objectives.base import Method, Objective
from vitscale.plan.cluster import detect_cluster
from vitscale.plan.plan import decide_precision
from vitscale.run_config import RunConfig
from vitscale.train.evaluations import build_evaluations
from vitscale.train.stored_model import check_fits

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def evaluate_checkpoint(config: RunConfig, *, checkpoint: Path | None) -> dict[str, dict[str, float]]:
    """Run every evaluation of `config` on `checkpoint` (None: the newest whole one of its run). All ranks call this.

    Every rank holds the whole model. Raises `ConfigError` when no evaluation is configured, `CheckpointError` when there is
    no usable checkpoint or it holds another model, `DataError` for the data.
    """
    if not config.evals:
        raise ConfigError("evals: nothing to evaluate; add an evaluation, for example evals.test with kind: classification and a path")
    cluster = detect_cluster(device=config.parallel.device, world_size=1)
    ranks = init_process_group(cluster.device)
    source = checkpoint if checkpoint is not None else config.run_dir
    path = Path(on_main(lambda: str(resolve_checkpoint(source))))
    reader = jointly(lambda: CheckpointReader(path))
    device = torch.device("cuda", torch.cuda.current_device()) if cluster.device == "cuda" else torch.device("cpu")
    dtype = _DTYPES[decide_precision(config, cluster=cluster)]
    loaded: dict[Kind, Objective] = {}
    results = {}
    for evaluation in build_evaluations(config, ranks=ranks, pin_memory=cluster.device == "cuda"):
        kind: Kind = "ema" if evaluation.weights == "ema" else "weight"
        if kind not in loaded:
            load = partial(load_objective, config, reader=reader, kind=kind, device=device, dtype=dtype)
            loaded = {kind: jointly(load)}
        results[evaluation.name] = evaluation.evaluator.run(_Predictor(loaded[kind], method=evaluation.evaluator.method, device=device))
    return results


def load_objective(config: RunConfig, *, reader: CheckpointReader, kind: Kind, device: torch.device, dtype: torch.dtype) -> Objective:
    """The configuration's objective with a checkpoint's weights, in evaluation mode. Reads one parameter at a time.

    Raises `CheckpointError` when names or shapes differ.
    """
    with torch.device("meta"):
        objective = config.objective.build(config.model.build())
    check_fits(objective, reader=reader, kind=kind)
    objective.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            parameter.copy_(reader.read_full(name, kind=kind))
    return objective.eval()


class _Predictor:
    """Scores batches in inference mode."""

    def __init__(self, objective: Objective, *, method: Method, device: torch.device) -> None:
        self._method = getattr(objective, method)
        self._device = device

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Any:
        moved = {key: value.to(self._device, non_blocking=True) for key, value in batch.items()}
        return self._method(moved)
