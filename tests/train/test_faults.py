"""Requests for faults: what a rank does with one, how often it looks, and that an ordinary run never looks."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.tiny_run import pack_tiny, read_lines, tiny_config
from vitscale import api
from vitscale.train import faults
from vitscale.train.faults import FaultHook, FaultReceipt, FaultRequest, forget_requests, read_receipt, request_fault
from vitscale.train.run_lock import Launch


class Engine:
    def __init__(self) -> None:
        self.done: list[str] = []

    def flip_weight_bit(self) -> str:
        self.done.append("bit-flip")
        return "weight"

    def poison_next_gradient(self) -> None:
        self.done.append("nan")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(faults.time, "sleep", clock.sleep)
    return clock


@pytest.mark.parametrize("kind", ["bit-flip", "nan"])
def test_a_request_is_done_once_and_acknowledged(tmp_path: Path, clock: Clock, kind: faults.InnerFault) -> None:
    engine = Engine()
    hook = FaultHook(tmp_path, rank=1, engine=engine, clock=clock)
    request_fault(tmp_path, FaultRequest(id="a", kind=kind), rank=0)
    hook.after_step(1)
    assert engine.done == [], "another rank is meant"
    request_fault(tmp_path, FaultRequest(id="b", kind=kind), rank=1)
    before = time.time()
    for step in (2, 3, 4):
        clock.now += 1.0
        hook.after_step(step)
    assert engine.done == [kind]
    receipt = read_receipt(tmp_path, rank=1)
    assert receipt == FaultReceipt(id="b", step=2, time=receipt.time if receipt else 0.0)
    assert before <= receipt.time <= time.time()
    assert read_receipt(tmp_path, rank=0) is None


def test_it_looks_at_most_twice_a_second(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    monkeypatch.setattr(faults, "_read_request", lambda *_: looks.append(clock.now))
    hook = FaultHook(tmp_path, rank=0, engine=Engine(), clock=clock)
    for step in range(400):
        hook.after_step(step)
        clock.now += 0.01
    assert 7 <= len(looks) <= 8


def test_a_slow_rank_sleeps_a_factor_of_its_step_for_a_while(tmp_path: Path, clock: Clock) -> None:
    hook = FaultHook(tmp_path, rank=0, engine=Engine(), clock=clock)
    request_fault(tmp_path, FaultRequest(id="a", kind="slow", seconds=2.95, factor=9.0), rank=0)
    begin = clock.now
    for step in range(50):
        clock.now += 0.1
        hook.after_step(step)
    assert clock.slept[:3] == pytest.approx([0.9, 0.9, 0.9])
    assert len(clock.slept) == 3, "of its own time, not of the slept one; and no longer than asked for"
    assert clock.now - begin == pytest.approx(50 * 0.1 + 3 * 0.9)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "nan"}'])
def test_what_is_no_request_is_passed_over(tmp_path: Path, clock: Clock, text: str) -> None:
    (tmp_path / "chaos").mkdir()
    (tmp_path / "chaos" / "rank-00000.json").write_text(text)
    (tmp_path / "chaos" / "rank-00000.begun.json").write_text(text)
    engine = Engine()
    FaultHook(tmp_path, rank=0, engine=engine, clock=clock).after_step(1)
    assert engine.done == []
    assert read_receipt(tmp_path, rank=0) is None


def test_requests_and_receipts_are_forgotten(tmp_path: Path, clock: Clock) -> None:
    engine = Engine()
    hook = FaultHook(tmp_path, rank=0, engine=engine, clock=clock)
    request_fault(tmp_path, FaultRequest(id="a", kind="nan"), rank=0)
    hook.after_step(1)
    request_fault(tmp_path, FaultRequest(id="b", kind="nan"), rank=0)
    forget_requests(tmp_path)
    clock.now += 1.0
    hook.after_step(2)
    assert engine.done == ["nan"]
    assert read_receipt(tmp_path, rank=0) is None
    forget_requests(tmp_path)


def test_a_hang_holds_the_interpreter() -> None:
    program = (
        "import signal, sys, threading, time\n"
        "from vitscale.train.faults import hang_holding_the_interpreter\n"
        "def speak():\n    time.sleep(0.5)\n    print('alive', flush=True)\n"
        "threading.Thread(target=speak, daemon=True).start()\n"
        "print('begun', flush=True)\n"
        "hang_holding_the_interpreter()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(1.5)
        process.terminate()  # no handler is set: the kernel acts
        assert process.stdout.read() == ""
    assert process.returncode == -15


def test_only_a_rehearsed_run_looks(tmp_path: Path) -> None:
    pack_tiny(tmp_path)
    for name, launch in (("ordinary", Launch(id="a", attempt=0)), ("rehearsed", Launch(id="b", attempt=0, rehearses_faults=True))):
        config = tiny_config(tmp_path, f"name={name}", "parallel.zero_stage=1", "train.num_samples=320", "checkpoint.every_steps=500")
        request_fault(config.run_dir, FaultRequest(id="x", kind="nan"), rank=0)
        api.train(config, launch=launch)
        skipped = [event for event in read_lines(config.run_dir / "events.jsonl") if event["event"] == "skipped_step"]
        receipt = read_receipt(config.run_dir, rank=0)
        if name == "ordinary":
            assert skipped == []
            assert receipt is None
        else:
            assert receipt is not None
            assert [event["step"] for event in skipped] == [receipt.step + 1]
            assert json.loads((config.run_dir / ".lock").read_text())["launch"]["rehearses_faults"] is True
