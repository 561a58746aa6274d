"""How many workers, and what each reserves."""

import os
from typing import Any

import pytest

from vitscale.config import ConfigError, UsageError, UserError
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


@pytest.mark.parametrize(
    ("num_workers", "min_workers", "global_batch", "expected"),
    [(4, None, 16, (4,)), (4, 1, 16, (1, 2, 4)), (4, 2, 16, (2, 4)), (8, 3, 24, (3, 4, 6, 8)), (4, 4, 16, (4,)), (3, 1, 16, (1, 2, 3))],
)
def test_the_global_batch_divides_among_every_number_that_will_do(
    num_workers: int, min_workers: int | None, global_batch: int, expected: tuple[int, ...]
) -> None:
    # The number asked for is never hidden: the plan says what is wrong with it.
    assert allowed_workers(num_workers=num_workers, min_workers=min_workers, global_batch=global_batch) == expected


def test_more_than_all_is_no_minimum() -> None:
    with pytest.raises(UsageError, match="--min-workers 5: more than --workers 4"):
        allowed_workers(num_workers=4, min_workers=5, global_batch=16)
