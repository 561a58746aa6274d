"""Saves of real processes on real failures: either of two ranks killed at every operation, a full disk, a disk with errors."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.checkpoint.faults import in_child, killed_at, start_child, survived, wait_for
from tests.checkpoint.simulation import FakeStore, make_tensors, open_saver, save_as
from tests.launcher import ROOT
from vitscale.checkpoint.discover import find_newest, verify
from vitscale.checkpoint.reader import CheckpointReader

pytestmark = pytest.mark.dist

OLD, NEW = (make_tensors(seed=seed, shapes={"a": (2, 3), "b": (4,)}, kinds=("weight",)) for seed in (1, 2))
SCRIPT = Path(__file__).with_name("fault_script.py")


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
        expected = {1: OLD, 2: NEW}[step]
        reader = CheckpointReader(newest)
        assert all(torch.equal(reader.read_full(name, kind=kind), value) for (name, kind), value in expected.items())
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


def _strace_injects() -> bool:
    return shutil.which("strace") is not None and subprocess.run(["strace", "-o", "/dev/null", "true"], check=False).returncode == 0


@pytest.mark.skipif(not _strace_injects(), reason="needs strace and the right to trace a child")
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
    trace = ("strace", "-f", "-qq", "-o", "/dev/null", "-P", str(failing), "-e", f"trace={call}", "-e", f"inject={call}:error={error}")
    report = _run(*trace, folder=tmp_path, last_step=3)
    assert report["errors"]["1"] is report["errors"]["3"] is None
    message = {"ENOSPC": "No space left on device", "EIO": "Input/output error"}[error]
    assert "the checkpoint of step 2 could not be saved" in report["errors"]["2"]
    assert message in report["errors"]["2"]
    assert report["whole"] == [1, 3]
    assert report["names"] == ["step-00000001", "step-00000003"]


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="needs the right to mount a file system")
def test_a_disk_that_is_full_keeps_what_it_has(tmp_path: Path) -> None:
    mounted = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"', str(tmp_path))
    report = _run(*mounted, folder=tmp_path, last_step=4)
    assert [step for step, error in report["errors"].items() if error is None] == ["1", "2"]
    assert all("No space left on device" in report["errors"][step] for step in ("3", "4"))
    assert report["whole"] == [1, 2]
    assert report["names"] == ["step-00000001", "step-00000002"], "what did not fit is gone"


def test_a_child_that_fails_is_no_kill() -> None:
    with pytest.raises(AssertionError, match="failed by itself"):
        survived(in_child(lambda: 1 // 0))
