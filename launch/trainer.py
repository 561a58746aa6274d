"""One training run as Ray Train workers: how many, with what resources, and how its end reaches the caller."""

import contextlib
import importlib
import shutil
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray.train
from ray.train.torch import TorchTrainer

from vitscale.config import ConfigError, UsageError
from vitscale.run_config import RunConfig

from .cluster import ClusterResources, num_cores, ray_cluster
from .failures import RestartLedger, training_error
from .task import TrainTask, make_task

# Ray's own limit is none: a cluster that can never hold the workers would be tried for ever.
_MAX_START_FAILURES = 10


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The workers of one run: each gets `cpus` logical CPUs, as many threads, and a GPU of its own if `use_gpu`."""

    num_workers: int
    cpus: int
    use_gpu: bool

    @property
    def resources(self) -> dict[str, float]:
        """What one worker reserves."""
        return {"CPU": self.cpus, **({"GPU": 1} if self.use_gpu else {})}


def choose_workers(*, num_workers: int, num_runs: int, device: Literal["auto", "cpu", "cuda"], cluster: ClusterResources) -> Workers:
    """Resources of each worker when `num_runs` runs of `num_workers` workers go on at the same time.

    On a local cluster the workers share all CPUs; on another each takes one. Raises `UsageError` when the CPUs or GPUs do
    not suffice, which Ray would wait for, and `ConfigError` when cuda is asked for without a GPU.
    """
    total = num_workers * num_runs
    if device == "cuda" and not cluster.num_gpus:
        raise ConfigError("parallel.device: cuda is asked for, but no machine of the Ray cluster has a GPU; use auto or cpu")
    use_gpu = device != "cpu" and cluster.num_gpus > 0
    cpus = max(1, cluster.num_cpus // total) if cluster.is_local else 1
    for name, needed, there in (("CPUs", total * cpus, cluster.num_cpus), ("GPUs", total * use_gpu, cluster.num_gpus)):
        if needed > there:
            raise UsageError(f"--workers {num_workers}: {total} workers need {needed} {name}, but the Ray cluster has {there}; use fewer")
    return Workers(num_workers=num_workers, cpus=cpus, use_gpu=use_gpu)


def launch_training(
    config: RunConfig,
    *,
    num_workers: int,
    address: str | None,
    allow_change: Collection[str] = (),
    stop_at_step: int | None = None,
    max_restarts: int = 3,
    debug: bool = False,
) -> dict[str, Any]:
    """Train `config` from the current directory on the Ray cluster at `address`, or on one of its own. Raises `UserError`."""
    with ray_cluster(address=address, num_cpus=max(num_workers, num_cores())) as cluster:
        workers = choose_workers(num_workers=num_workers, num_runs=1, device=config.parallel.device, cluster=cluster)
        task = make_task(config, allow_change=allow_change, stop_at_step=stop_at_step, debug=debug)
        return run_training(task, run_dir=config.run_dir, workers=workers, max_restarts=max_restarts)


def run_training(task: TrainTask, *, run_dir: Path, workers: Workers, max_restarts: int) -> dict[str, Any]:
    """Train the task on Ray Train workers and wait for it. Needs a connection to Ray.

    When a worker dies all are restarted, at most `max_restarts` times; where to resume is then decided by `train`, from the
    run directory. Returns what `train_worker` does. Raises the `UserError` that ended the run.
    """
    # Ray insists on a folder that all nodes see, for checkpoints that we do not give it. A name of its own for every
    # start, because Ray silently goes on with what it remembers of a name that was used before.
    scratch, name = run_dir / ".ray", uuid.uuid4().hex
    callbacks: list[ray.train.UserCallback] = [RestartLedger(events=run_dir / "events.jsonl", max_restarts=max_restarts)]
    scaling = ray.train.ScalingConfig(num_workers=workers.num_workers, use_gpu=workers.use_gpu, resources_per_worker=workers.resources)
    trainer = TorchTrainer(
        _train_in_worker,
        train_loop_config={"task": task.to_json()},
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(scratch),
            failure_config=ray.train.FailureConfig(max_failures=max_restarts, controller_failure_limit=_MAX_START_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=callbacks,
            # Restarts are told by the ledger, errors by the command.
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),
        ),
    )
    try:
        outcome = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise training_error(error, max_restarts=max_restarts) from error
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)
        with contextlib.suppress(OSError):  # another start of the same run has its folder there
            scratch.rmdir()
    assert isinstance(outcome, dict), "rank 0 returns how the run ended"
    return outcome


def _train_in_worker(config: dict[str, str]) -> dict[str, Any]:
    # By name: importing the worker's code here would cost each driver and trial DeepSpeed, seconds and hundreds of MiB.
    worker = importlib.import_module(".worker", __package__)
    result: dict[str, Any] = worker.train_worker(config["task"])
    return result
