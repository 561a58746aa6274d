"""Whole runs that are disturbed in the middle: asked to stop, slowed down, without a disk, hung; and how they end."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.facilities import with_tmpfs
from tests.launcher import ROOT, run_ranks
from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, events, losses, pack_tiny, sample_ids
from vitscale.checkpoint.discover import find_newest

pytestmark = pytest.mark.timeout(600)

SCRIPT = Path(__file__).with_name("rank_disturbed.py")
NUM_STEPS = 40
LENGTH = [f"train.num_samples={16 * NUM_STEPS}", "checkpoint.every_steps=10", "checkpoint.keep=9", "train.log_images=0"]
STOPS = [
    (f"{number} in {place}", in_background)
    for number, place, in_background in itertools.product(("SIGTERM", "SIGUSR1"), ("step", "save"), ("true", "false"))
    if place == "save" or in_background == "true"
]


def job(name: str, *overrides: str, do: str | None = None, after: int = 0) -> dict[str, Any]:
    return {"overrides": [*LENGTH, f"name={name}", *overrides], "do": do, "after": after}


def stop_job(what: str, in_background: str, *, disturb: bool) -> dict[str, Any]:
    name = f"{what} {in_background}".replace(" ", "-")
    after = 20 if "save" in what else 17
    return job(name, f"checkpoint.in_background={in_background}", do=what if disturb else None, after=after)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """The folder of the runs, and the exit codes of each one's two attempts, equal on both ranks."""
    root = tmp_path_factory.mktemp("stopped")
    pack_tiny(root)
    jobs = [stop_job(*stop, disturb=disturb) for disturb in (True, False) for stop in STOPS]
    ended = run_ranks(SCRIPT, root, json.dumps([job("reference"), *jobs]))
    codes = [[end["code"] for end in rank] for rank in ended]
    assert codes[0] == codes[1]
    names = [one["overrides"][-2].removeprefix("name=") for one in jobs]
    by_name: dict[str, list[float]] = {}
    for name, code in zip(names, codes[0][1:], strict=True):
        by_name.setdefault(name, []).append(code)
    return root / "runs", by_name


@pytest.mark.dist
@pytest.mark.parametrize("stop", STOPS)
def test_a_signal_to_one_rank_loses_no_step(stopped: tuple[Path, dict[str, list[float]]], stop: tuple[str, str]) -> None:
    folder, codes = stopped
    run = folder / " ".join(stop).replace(" ", "-")
    assert codes[run.name] == [75, 0]
    (ended,) = events(run, "ended")
    step = ended["step"]
    # In a save the signal may come when the vote of its step is over: the next step is done and saved too.
    assert step == 17 if "step" in stop[0] else 20 <= step <= 25
    assert [event["step"] for event in events(run, "resume")] == [step]
    steps = [record["step"] for record in events(run, "checkpoint")]
    assert step in steps
    assert list(losses(run)) == list(range(1, NUM_STEPS + 1))
    assert losses(run) == losses(folder / "reference")
    assert sample_ids(run) == sample_ids(folder / "reference")
    assert_equal_tensors(checkpoint_tensors(run, step=NUM_STEPS), checkpoint_tensors(folder / "reference", step=NUM_STEPS))


@pytest.mark.dist
def test_a_slow_rank_is_named_within_two_windows_and_watching_costs_little(tmp_path: Path) -> None:
    pack_tiny(tmp_path)
    window = 5
    (_, on_rank_1) = run_ranks(SCRIPT, tmp_path, json.dumps([job("tiny", f"train.log_every_steps={window}", do="slow", after=16)]))
    assert on_rank_1[0]["code"] == 0
    found = events(tmp_path / "runs" / "tiny", "straggler")
    assert [event["rank"] for event in found] == [1]
    assert 15 < found[0]["step"] <= 15 + 2 * window
    assert on_rank_1[0]["watching_seconds"] < 0.01 * on_rank_1[0]["seconds"]


@pytest.mark.dist
def test_training_goes_on_while_the_disk_is_full(tmp_path: Path) -> None:
    """The full disk is a tmpfs that only the run sees; what is asked of it is looked at from inside, before it is gone."""
    output = tmp_path / "runs"
    in_output = with_tmpfs(output, size="32m")
    pack_tiny(tmp_path)
    output.mkdir()
    jobs = [job("reference", f"output={tmp_path / 'reference'}"), job("full", do="full", after=15)]
    train = [sys.executable, str(SCRIPT), str(tmp_path), json.dumps(jobs)]
    command = [*in_output, "sh", "-c", '"$@" && cp -r "$0" "$0/../copy"', str(output), *train]
    done = subprocess.run(command, env=alone(), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    run, reference = tmp_path / "copy" / "full", tmp_path / "reference" / "reference"
    assert [event["step"] for event in events(run, "save_failed")] == [20, 30]
    assert all("are free there" in event["message"] for event in events(run, "save_failed"))
    assert [event["step"] for event in events(run, "checkpoint")] == [10, 40]
    assert losses(run) == losses(reference)
    assert find_newest(run / "checkpoints", deep=True).checkpoint == run / "checkpoints" / "step-00000040"
    for step in (10, 40):
        assert_equal_tensors(checkpoint_tensors(run, step=step), checkpoint_tensors(reference, step=step))
    assert failed_saves(run) == [1.0, 2.0]


def failed_saves(run: Path) -> list[float]:
    """The lowest and the highest count of failed saves in TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard")).Reload()
    values = [point.value for point in found.Scalars("checkpoint/failed_saves")]
    return [min(values), max(values)]


def alone() -> dict[str, str]:
    """The environment of a process that imports from here and trains by itself."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


# torchrun's ranks share its store, in which a second start can find the addresses of the first one's processes.
FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@pytest.mark.chaos
@pytest.mark.parametrize("hang", ["stopped", "locked", "absent"])
def test_a_hung_rank_is_named_and_ended_and_torchrun_finishes_the_run(tmp_path: Path, hang: str) -> None:
    pack_tiny(tmp_path)
    run_ranks(SCRIPT, tmp_path, json.dumps([job("reference")]))
    disturbed = json.dumps([job("hung", "watch.hang_seconds=6", do=hang, after=17)])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    done = subprocess.run(
        [*launcher, str(SCRIPT), str(tmp_path), disturbed],
        env=alone() | FRESH_STORE,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    run, reference = tmp_path / "runs" / "hung", tmp_path / "runs" / "reference"
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = events(run, "hang")
    assert (found["rank"], found["ranks"]) == (1, [1])
    stacks = {path.name: path.read_text() for path in (run / "logs").glob("hang-rank-*.txt")}
    assert {name[:15] for name in stacks} == {"hang-rank-00000", "hang-rank-00001"}
    assert f"logs/{next(name for name in stacks if name.startswith('hang-rank-00001'))}" == found["stacks"]
    (resumed,) = events(run, "resume")
    assert resumed["step"] == 10
    assert resumed["time"] - found["time"] + found["seconds"] < 60.0, "from the last sign of life to training again"
    assert sample_ids(run) == sample_ids(reference)
    assert_equal_tensors(checkpoint_tensors(run, step=NUM_STEPS), checkpoint_tensors(reference, step=NUM_STEPS))
