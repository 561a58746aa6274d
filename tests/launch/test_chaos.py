"""A whole rehearsal: a run that is killed, stopped and poisoned while it trains, and the table of what came of it."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.launcher import ROOT
from tests.train.tiny_run import events, tiny_values
from vitscale.config import dump_yaml
from vitscale.train.faults import FaultHook
from vitscale.train.hang_rules import RankState
from vitscale_launch.chaos import Chaos
from vitscale_launch.chaos_plan import ChaosPlan, FaultKind

NAN = ChaosPlan(kinds=(FaultKind.NAN,), every_seconds=0.1, num_workers=1, count=2)
KILL = ChaosPlan(kinds=(FaultKind.KILL,), every_seconds=0.1, num_workers=1, count=2)


class FakeRun:
    """What a run of one rank leaves in its directory, without training anything."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        (run_dir / "heartbeats").mkdir()
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def event(self, kind: str, **values: Any) -> None:
        with (self.run_dir / "events.jsonl").open("a") as file:
            file.write(json.dumps({"time": time.time(), "event": kind, "step": 0, "message": "", **values}) + "\n")

    def show(self, *, phase: str = "step", closed: bool = False) -> None:
        state = RankState(attempt="a", rank=0, host=os.uname().nodename, pid=self.process.pid, phase=phase, closed=closed)
        (self.run_dir / "heartbeats" / "rank-00000.json").write_text(json.dumps(asdict(state)))


@pytest.fixture
def run(tmp_path: Path) -> Any:
    run = FakeRun(tmp_path)
    yield run
    run.process.kill()
    run.process.wait()


def test_nothing_is_done_before_all_ranks_train(run: FakeRun) -> None:
    run.event("start", world_size=1)  # of an earlier command
    run.show()
    with Chaos(run.run_dir, plan=KILL, machines=None) as chaos:
        time.sleep(0.5)
        assert chaos.injections == []
        run.event("start", world_size=1)
        run.show(phase="start")
        time.sleep(0.5)
        assert chaos.injections == []
        run.show()
        assert run.process.wait(timeout=20) == -9
    assert [injection.kind for injection in chaos.injections] == [FaultKind.KILL]
    assert [event["reason"] for event in events(run.run_dir, "fault")] == ["kill"]


def test_after_a_kill_it_waits_for_the_next_start(run: FakeRun) -> None:
    with Chaos(run.run_dir, plan=KILL, machines=None) as chaos:
        run.event("start", world_size=1)
        run.show()
        run.process.wait(timeout=20)
        time.sleep(0.5)
        assert len(chaos.injections) == 1
        run.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        run.event("restart")
        run.show()
        time.sleep(0.5)
        assert len(chaos.injections) == 1
        run.event("resume", world_size=1)
        assert run.process.wait(timeout=20) == -9
    assert len(chaos.injections) == 2


def test_what_a_clock_of_another_machine_says_of_a_start_does_not_matter(run: FakeRun) -> None:
    with Chaos(run.run_dir, plan=KILL, machines=None) as chaos:
        run.event("start", world_size=1, time=time.time() - 3600)
        run.show()
        run.process.wait(timeout=20)
        run.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        run.event("restart")
        run.event("resume", world_size=1, time=time.time() - 3600)
        run.show()
        assert run.process.wait(timeout=20) == -9
    assert len(chaos.injections) == 2


def test_inner_faults_go_to_the_rank_and_leave_no_request(run: FakeRun) -> None:
    class Engine:
        num_poisoned = 0

        def flip_weight_bit(self) -> str:
            raise AssertionError

        def poison_next_gradient(self) -> None:
            self.num_poisoned += 1

    engine, over = Engine(), threading.Event()
    with Chaos(run.run_dir, plan=NAN, machines=None) as chaos:
        hook = FaultHook(run.run_dir, rank=0, engine=engine)
        run.event("start", world_size=1)
        run.show()
        step, deadline = 0, time.monotonic() + 20
        while len(chaos.injections) < 2 and not over.wait(0.02):
            assert time.monotonic() < deadline
            step += 1
            hook.after_step(step)
    assert engine.num_poisoned == 2
    assert chaos.injections[0].step < chaos.injections[1].step
    assert not (run.run_dir / "chaos").exists()


def test_a_fault_that_cannot_be_done_is_told_and_the_next_one_is_tried(run: FakeRun) -> None:
    pid = run.process.pid
    run.process.kill()
    run.process.wait()
    with Chaos(run.run_dir, plan=KILL, machines=None) as chaos:
        run.event("start", world_size=1)
        run.show()
        deadline = time.monotonic() + 20
        while len(events(run.run_dir, "fault_not_done")) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert chaos.injections == []
    assert f"process {pid} of rank 0 cannot be signalled" in events(run.run_dir, "fault_not_done")[0]["message"]


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_rehearsal_tells_of_each_fault_how_it_was_noticed(tmp_path: Path) -> None:
    values = tiny_values(tmp_path)
    (tmp_path / "tiny.yaml").write_text(dump_yaml(values))
    length = ["train.num_samples=48000", "checkpoint.every_steps=50", "train.log_every_steps=5", "train.log_images=0"]
    watched = ["watch.hang_seconds=6", "watch.compare_replicas_every_steps=1"]
    kinds = ["kill", "nan", "stop", "hang", "slow", "bit-flip"]
    faults = [option for kind in kinds for option in ("--fault", kind)]
    command = [sys.executable, "-m", "vitscale_launch", "chaos", str(tmp_path / "tiny.yaml"), *length, *watched, "--workers", "2", *faults]
    done = subprocess.run(
        [*command, "--every", "3", "--for", "5", "--count", "6", "--max-restarts", "9"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    table = done.stdout[done.stdout.rindex("time      fault") :].splitlines()
    print("\n".join(table))
    cells = [re.split(r" {2,}", line) for line in table[1:-1]]
    noticed = {row[1]: row[4] for row in cells}
    assert set(noticed) == set(kinds)
    assert "worker_failed, restart" in noticed["kill"]
    assert all(noticed[kind].startswith("hang") for kind in ("stop", "hang"))
    assert noticed["nan"] == "skipped_step"
    assert noticed["slow"] == "straggler"
    assert "corruption" in noticed["bit-flip"]
    again = {row[1]: row[6] for row in cells}
    assert all(float(again[kind].removesuffix(" s")) < 60 for kind in ("kill", "stop", "hang")), again
    assert not (tmp_path / "runs" / "tiny" / "chaos").exists()


FAULTS = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")


def test_every_test_that_the_documentation_names_is_there() -> None:
    named = re.findall(r"`([a-z_/]+/test_[a-z_]+\.py)(?:::(test_[a-z_0-9]+))?`", FAULTS)
    assert len(named) > 20
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / "tests" / path).read_text() and name]
    assert missing == []


def test_every_fault_is_documented() -> None:
    rehearsals = FAULTS[FAULTS.index("## Rehearsals") :]
    assert [kind for kind in FaultKind if f"`{kind}`" not in rehearsals] == []
