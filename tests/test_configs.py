"""Every YAML file in configs/ is a run that decodes and plans, or a sweep, and says at its top what it is and how to start it."""

from pathlib import Path

import pytest

from vitscale.plan.cluster import Cluster
from vitscale.plan.plan import make_plan
from vitscale.run_config import load_run_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
RUN_FOLDERS = ("pretrain", "finetune", "smoke")
RUNS = [path for path in CONFIGS if path.parent.name in RUN_FOLDERS]
SWEEPS = [path for path in CONFIGS if path.parent.name == "sweeps"]  # tests/launch/test_sweep.py reads them


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_is_left_out() -> None:
    assert RUNS
    assert [name(path) for path in CONFIGS if path not in RUNS + SWEEPS] == []


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_run_decodes_and_plans(path: Path, world_size: int) -> None:
    config = load_run_config(path)
    plan = make_plan(config, cluster=Cluster(device="cpu", world_size=world_size, memory_bytes=12 * 2**30, host_memory_bytes=12 * 2**30))
    assert plan.num_steps == config.num_steps > 0
    assert plan.micro_batch * plan.accumulation * world_size == config.train.global_batch


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_a_run_is_called_like_its_file(path: Path) -> None:
    assert load_run_config(path).name == path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_file_says_how_to_start_it(path: Path) -> None:
    heading = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert len(heading) >= 2
    assert any("vitscale" in line and name(path) in line for line in heading)
