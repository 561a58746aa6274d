"""How many workers, and what each reserves."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.train.tiny_run import tiny_config
from vitscale.config import ConfigError, UsageError, UserError
from vitscale.plan.cluster import detect_cluster
from vitscale.plan.plan import make_plan
from vitscale.run_config import RunConfig
from vitscale_launch.workers import ClusterResources, Workers, allowed_workers, choose_workers, num_cores


def cluster(*, cpus: int = 8, gpus: int = 0, local: bool = True) -> ClusterResources:
    return ClusterResources(num_cpus=cpus, num_gpus=gpus, is_local=local)


@pytest.mark.parametrize(
    ("wanted", "there", "expected"),
    [
        ({"num_workers": 2}, cluster(), Workers(num_workers=2, cpus=4, use_gpu=False)),
        ({"num_workers": 3}, cluster(), Workers(num_workers=3, cpus=2, use_gpu=False)),
        ({"num_workers": 8}, cluster(), Workers(num_workers=8, cpus=1, use_gpu=False)),
        ({"num_workers": 2}, cluster(local=False), Workers(num_workers=2, cpus=1, use_gpu=False)),
        ({"num_workers": 2}, cluster(gpus=4), Workers(num_workers=2, cpus=4, use_gpu=True)),
        ({"num_workers": 2, "device": "cpu"}, cluster(gpus=4), Workers(num_workers=2, cpus=4, use_gpu=False)),
        ({"num_workers": 1, "num_runs": 2}, cluster(cpus=3), Workers(num_workers=1, cpus=1, use_gpu=False)),
    ],
)
def test_workers_share_what_the_cluster_has(wanted: dict[str, Any], there: ClusterResources, expected: Workers) -> None:
    assert choose_workers(**({"num_runs": 1, "device": "auto"} | wanted), cluster=there) == expected


@pytest.mark.parametrize(
    ("wanted", "there", "error", "message"),
    [
        ({"num_workers": 9}, cluster(local=False), UsageError, "9 workers need 9 CPUs, but the Ray cluster has 8"),
        ({"num_workers": 3}, cluster(gpus=2), UsageError, "3 workers need 3 GPUs, but the Ray cluster has 2"),
        ({"num_workers": 1, "device": "cuda"}, cluster(), ConfigError, "no machine of the Ray cluster has a GPU"),
    ],
)
def test_what_the_cluster_lacks_is_told_at_once(
    wanted: dict[str, Any], there: ClusterResources, error: type[UserError], message: str
) -> None:
    with pytest.raises(error, match=message):
        choose_workers(**({"num_runs": 1, "device": "auto"} | wanted), cluster=there)


def test_a_worker_reserves_its_gpu() -> None:
    assert Workers(num_workers=2, cpus=4, use_gpu=True).resources == {"CPU": 4, "GPU": 1}
    assert Workers(num_workers=2, cpus=1, use_gpu=False).resources == {"CPU": 1}


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= num_cores() <= (os.cpu_count() or 1)


def config(root: Path, global_batch: int, *overrides: str) -> RunConfig:
    return tiny_config(root, f"train.global_batch={global_batch}", f"train.num_samples={6 * global_batch}", *overrides)


PAIRS = "objective.mixup_alpha=0.2"


@pytest.mark.parametrize(
    ("num_workers", "min_workers", "global_batch", "settings", "expected"),
    [
        (4, None, 16, (), (4,)),
        (4, 1, 16, (), (1, 2, 4)),
        (4, 2, 16, (), (2, 4)),
        (8, 3, 24, (), (3, 4, 6, 8)),
        (4, 4, 16, (), (4,)),
        # The number asked for is never hidden: the plan says what is wrong with it.
        (3, 1, 16, (), (1, 2, 3)),
        # What the plan would refuse is no choice.
        (8, 1, 24, ("parallel.micro_batch=6",), (1, 2, 4, 8)),
        (8, 1, 20, (PAIRS,), (1, 2, 5, 8)),
    ],
)
def test_the_global_batch_divides_among_every_number_that_will_do(
    tmp_path: Path, num_workers: int, min_workers: int | None, global_batch: int, settings: tuple[str, ...], expected: tuple[int, ...]
) -> None:
    run = config(tmp_path, global_batch, *settings)
    allowed = allowed_workers(num_workers=num_workers, min_workers=min_workers, config=run)
    assert allowed == expected
    for number in range(min_workers or num_workers, num_workers):
        with nullcontext() if number in allowed else pytest.raises(ConfigError):
            make_plan(run, cluster=detect_cluster(device="cpu", world_size=number))


@pytest.mark.parametrize(
    ("num_workers", "min_workers", "settings", "message"),
    [
        (
            64,
            56,
            (),
            "4096 samples of train.global_batch, by 1, divide among no number of workers from 56 to 63; the most that will do is 32",
        ),
        (8, 5, ("parallel.micro_batch=1024",), "by 1024, divide among no number of workers from 5 to 7; the most that will do is 4"),
        (2, 1, ("parallel.micro_batch=8192",), "by 8192, divide among no number of workers from 1 to 1$"),
        (4, 5, (), "--min-workers 5: more than --workers 4"),
    ],
)
def test_a_minimum_that_leaves_nothing_to_choose_is_told(
    tmp_path: Path, num_workers: int, min_workers: int, settings: tuple[str, ...], message: str
) -> None:
    run = config(tmp_path, 4096, *settings)
    with pytest.raises(UsageError, match=message):
        allowed_workers(num_workers=num_workers, min_workers=min_workers, config=run)
