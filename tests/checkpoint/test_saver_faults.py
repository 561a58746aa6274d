"""Saves of real processes on real failures: killed at every operation, alone or as one of two ranks; a full disk, a disk with errors."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.checkpoint.faults import in_child, killed_at, start_child, survived, wait_for
from tests.checkpoint.simulation import FakeStore, holds, make_tensors, open_saver, save_as
from tests.facilities import with_injection, with_tmpfs
from tests.launcher import ROOT
from vitscale.checkpoint.discover import find_newest, verify
from vitscale.config import CheckpointError

OLD, NEW = (make_tensors(seed=seed, shapes={"a": (2, 3), "b": (4,)}, kinds=("weight",)) for seed in (1, 2))
SCRIPT = Path(__file__).with_name("fault_script.py")


def _newest_after_kills(folder: Path, *, in_background: bool) -> Iterator[Path]:
    """Beside what `before` holds, step 2 of NEW is saved, killed one operation later each time; ends with the first that lives."""

    def save(*, folder: Path, operation: int) -> None:
        with killed_at(operation):
            save_as(NEW, folder=folder, step=2, in_background=in_background)

    for operation in range(1, 200):
        copy = shutil.copytree(folder / "before", folder / str(operation))
        lived = survived(in_child(partial(save, folder=copy, operation=operation)))
        newest = find_newest(copy).checkpoint
        assert newest is not None
        yield newest
        if lived:
            return
    raise AssertionError("no save lived to its end")


@pytest.mark.dist
@pytest.mark.parametrize("in_background", [False, True], ids=["waiting", "background"])
def test_a_kill_at_any_point_of_a_save_leaves_the_newest_complete_checkpoint(tmp_path: Path, in_background: bool) -> None:
    kept = {1: 0, 2: 0}
    save_as(OLD, folder=tmp_path / "before", step=1)
    for newest in _newest_after_kills(tmp_path, in_background=in_background):
        step = verify(newest).step
        assert holds(newest, {1: OLD, 2: NEW}[step])
        kept[step] += 1
        # The next process saves the same step again over whatever was left.
        assert holds(save_as(NEW, folder=newest.parent, step=2), NEW)
    assert kept[1] >= 10
    assert kept[2] >= 2, "no kill fell between the commit and the end"


@pytest.mark.dist
def test_a_kill_while_a_step_is_saved_again_leaves_one_of_the_two(tmp_path: Path) -> None:
    outcomes = set()
    save_as(OLD, folder=tmp_path / "before", step=2)
    for newest in _newest_after_kills(tmp_path, in_background=True):
        assert holds(newest, OLD) or holds(newest, NEW)
        outcomes.add((newest.name, holds(newest, NEW)))
    assert outcomes == {("step-00000002", False), ("step-00000002.replaced", False), ("step-00000002", True)}


def _save_as_rank(rank: int, *, folder: Path, meeting: Path, operation: int) -> None:
    """Save step 2 as one of two gloo processes, voting after each step of training; killed at the n-th operation."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    saver = open_saver(FakeStore(NEW, rank=rank, world_size=2, zero_stage=3, optimizer_steps=2), folder=folder)
    with killed_at(operation):
        saver.begin(step=2, state={"step": 2}, config_text="")
        told = 0
        while told == 0:
            ballot = torch.tensor([saver.parts_written])
            dist.all_reduce(ballot, op=dist.ReduceOp.MIN)
            ended = torch.tensor([len(saver.poll(parts_written=int(ballot)))])
            dist.all_reduce(ended)
            told = int(ended)
            time.sleep(0.001)
        saver.finish()
    saver.close()


@pytest.mark.dist
@pytest.mark.parametrize("victim", [0, 1])
def test_a_kill_of_one_of_two_ranks_at_any_point_leaves_the_newest_complete_checkpoint(tmp_path: Path, victim: int) -> None:
    save_as(OLD, folder=tmp_path / "before", step=1, world_size=2)
    newest_steps = []
    for operation in range(1, 100):
        folder, meeting = tmp_path / str(operation), tmp_path / f"{operation}.meeting"
        shutil.copytree(tmp_path / "before", folder)
        children = [
            start_child(
                lambda rank=rank, folder=folder, meeting=meeting, at=operation if rank == victim else 0: _save_as_rank(  # type: ignore[misc]
                    rank, folder=folder, meeting=meeting, operation=at
                )
            )
            for rank in range(2)
        ]
        statuses = [wait_for(child) for child in children]
        newest = find_newest(folder).checkpoint
        assert newest is not None
        step = verify(newest).step
        assert holds(newest, {1: OLD, 2: NEW}[step])
        newest_steps.append(step)
        # The next start saves the same step over whatever was left.
        assert verify(save_as(NEW, folder=folder, step=2, world_size=2)).step == 2
        if survived(statuses[victim]):
            break
    assert statuses == [0, 0]
    assert newest_steps[-1] == 2
    assert newest_steps.count(1) >= (10 if victim == 0 else 3), "the kills fell beside the save"
    assert newest_steps == sorted(newest_steps), "a later kill must not lose what an earlier one kept"


def _run(*prefix: str, folder: Path, last_step: int) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*prefix, sys.executable, str(SCRIPT), str(folder), str(last_step)]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return report


@pytest.mark.dist
@pytest.mark.parametrize(
    ("call", "error", "file"),
    [
        ("write", "ENOSPC", "rank-00000.safetensors"),
        ("write", "EIO", "rank-00000.safetensors"),
        ("fsync", "EIO", "rank-00000.safetensors"),
        ("write", "ENOSPC", "manifest.json"),
        ("fsync", "EIO", "manifest.json"),
        ("fsync", "EIO", ""),
    ],
)
def test_an_error_of_the_disk_costs_that_save_only(tmp_path: Path, call: str, error: str, file: str) -> None:
    failing = tmp_path / "step-00000002.tmp-a1" / file
    report = _run(*with_injection(call, error=error, file=failing), folder=tmp_path, last_step=3)
    assert report["errors"]["1"] is report["errors"]["3"] is None
    message = {"ENOSPC": "No space left on device", "EIO": "Input/output error"}[error]
    assert "the checkpoint of step 2 could not be saved" in report["errors"]["2"]
    assert message in report["errors"]["2"]
    assert report["whole"] == [1, 3]
    assert report["names"] == ["step-00000001", "step-00000003"]


@pytest.mark.dist
def test_a_disk_that_is_full_keeps_what_it_has(tmp_path: Path) -> None:
    report = _run(*with_tmpfs(tmp_path, size="1m"), folder=tmp_path, last_step=4)
    assert [step for step, error in report["errors"].items() if error is None] == ["1", "2"]
    assert all("No space left on device" in report["errors"][step] for step in ("3", "4"))
    assert report["whole"] == [1, 2]
    assert report["names"] == ["step-00000001", "step-00000002"], "what did not fit is gone"


def test_a_real_limit_of_the_file_system_is_reported(tmp_path: Path) -> None:
    large = {("a", "weight"): torch.zeros(50_000)}
    save_as(OLD, folder=tmp_path, step=1)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        with pytest.raises(CheckpointError, match=r"rank-00000\.safetensors: File too large"):
            save_as(large, folder=tmp_path, step=2, in_background=True)  # type: ignore[arg-type]

    assert in_child(work) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_child_that_fails_is_no_kill() -> None:
    with pytest.raises(AssertionError, match="failed by itself"):
        survived(in_child(lambda: 1 // 0))
