"""How many workers a run has and what each of them reserves."""

import os
from dataclasses import dataclass
from typing import Literal

from vitscale.config import ConfigError, UsageError
from vitscale.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class ClusterResources:
    """What the cluster has in all, as Ray counts it."""

    num_cpus: int
    num_gpus: int
    is_local: bool


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


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def allowed_workers(*, num_workers: int, min_workers: int | None, config: RunConfig) -> tuple[int, ...]:
    """The numbers of workers that will do, in rising order: those from `min_workers` among which the global batch divides, in
    micro-batches that the run can have, so that it stays what it is. Without `min_workers` only `num_workers`, even where it does
    not divide. Raises `UsageError`, also where no smaller number will do."""
    if min_workers is None:
        return (num_workers,)
    if min_workers > num_workers:
        raise UsageError(f"--min-workers {min_workers}: more than --workers {num_workers}; give a smaller number")
    asked = config.parallel.micro_batch
    unit = config.objective.micro_batch_multiple if asked == "auto" else asked
    batch = config.train.global_batch
    smaller = [n for n in range(1, num_workers) if batch % (n * unit) == 0]
    fitting = [n for n in smaller if n >= min_workers]
    if not fitting and min_workers < num_workers:
        most = f"; the most that will do is {smaller[-1]}" if smaller else ""
        raise UsageError(
            f"--min-workers {min_workers}: the {batch} samples of train.global_batch, by {unit}, divide among no number of workers from"
            f" {min_workers} to {num_workers - 1}{most}"
        )
    return (*fitting, num_workers)
