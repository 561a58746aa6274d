"""The ledger of time: blocks have their own time only, slices cover all of it, and counting costs next to nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitscale.train.events_file import read_events
from vitscale.train.goodput import CAUSES, Cause, HostSeconds, RunningShares, TimeLedger, append_slice, seconds_since_process_start


class FakeClock:
    """Moves when it is told to."""

    def __init__(self, now: float = 500.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def make_ledger(clock: FakeClock, *, seconds_before: float = 0.0) -> TimeLedger:
    return TimeLedger(clock=clock, wall_clock=lambda: 1e9, seconds_before=seconds_before)


def spent(ledger: TimeLedger, *, step: int = 0) -> dict[str, float]:
    return {cause: seconds for cause, seconds in ledger.take(step=step).seconds.items() if seconds}


def test_a_nested_block_is_not_the_outer_ones_time() -> None:
    clock = FakeClock()
    ledger = make_ledger(clock)
    ledger.become("step")
    clock.now += 1
    with ledger.spent("evaluation"):
        clock.now += 2
        with ledger.spent("data_wait"):
            clock.now += 4
            with ledger.spent("evaluation"):
                clock.now += 8
        clock.now += 16
    clock.now += 32
    assert spent(ledger) == {"step": 33, "evaluation": 26, "data_wait": 4}


def test_a_block_that_raises_ends() -> None:
    clock = FakeClock()
    ledger = make_ledger(clock)

    def fail() -> None:
        with ledger.spent("checkpoint"):
            clock.now += 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    clock.now += 2
    assert spent(ledger) == {"checkpoint": 1, "start_up": 2}


def test_the_base_cannot_change_under_a_block() -> None:
    ledger = TimeLedger()
    with ledger.spent("report"), pytest.raises(AssertionError, match="inside a block of 'report'"):
        ledger.become("stop")


def test_slices_follow_each_other_without_a_hole_and_stand_alone() -> None:
    clock = FakeClock()
    ledger = make_ledger(clock, seconds_before=7.0)
    clock.now += 3
    first = ledger.take(step=40)
    ledger.become("step")
    clock.now += 5
    ledger.step_done()
    with ledger.spent("report"):
        clock.now += 2
        second = ledger.take(step=41)
        clock.now += 1
    third = ledger.take(step=41)
    assert [s.after_seconds for s in (first, second, third)] == [0, 10, 17]
    assert [(s.from_step, s.step) for s in (first, second, third)] == [(40, 40), (40, 41), (41, 41)]
    assert [sum(s.seconds.values()) for s in (first, second, third)] == [10, 7, 1]
    assert {(s.attempt, s.begin, s.monotonic, s.boot) for s in (first, second, third)} == {(first.attempt, 1e9 - 7, 493.0, first.boot)}
    assert third.record()["seconds"] == {"report": 1.0}


def test_a_step_is_all_its_training_and_what_is_not_done_yet_is_unfinished() -> None:
    clock = FakeClock()
    ledger = make_ledger(clock)
    ledger.become("step")
    for wait, work in ((1.0, 2.0), (0.0, 3.0)):
        with ledger.spent("data_wait"):
            clock.now += wait
        with ledger.spent("report"):
            clock.now += 100.0
        clock.now += work
        ledger.step_done()
    clock.now += 0.5
    taken = ledger.take(step=2)
    assert taken.step_seconds == (3.0, 3.0)
    assert taken.unfinished_seconds == 0.5
    clock.now += 1.0
    ledger.step_done()
    assert ledger.take(step=3).step_seconds == (1.5,)


def test_steps_are_counted_where_nobody_says_how_many() -> None:
    ledger = TimeLedger()
    assert ledger.take().step == 0
    ledger.take(step=40)
    for _ in range(3):
        ledger.step_done()
    taken = ledger.take()
    assert (taken.from_step, taken.step) == (40, 43)
    assert ledger.take().step == 43


def test_a_slice_is_appended_as_one_line(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n')
    ledger = TimeLedger()
    slices = [ledger.take(step=5), ledger.take()]
    for slice_ in slices:
        append_slice(tmp_path / "events.jsonl", slice_)
    file = read_events(tmp_path)
    assert [event["event"] for event in file.events] == ["start", "time", "time"]
    assert file.events[1] == {"time": file.events[1]["time"], **slices[0].record()}


def test_collectives_count_inside_steps_only() -> None:
    clock, waited = FakeClock(), FakeClock(now=40.0)
    ledger = make_ledger(clock)
    ledger.watch_collectives(waited)
    ledger.become("step")
    causes: tuple[Cause, ...] = ("report", "compile", "checkpoint", "data_wait")
    for cause in causes:
        with ledger.spent(cause):
            clock.now += 2.0
            waited.now += 1.0
    clock.now += 3.0
    waited.now += 0.5
    assert ledger.host_seconds == HostSeconds(steps=7.0, collectives=2.5, data_wait=2.0)
    ledger.take(step=1)
    assert ledger.host_seconds == HostSeconds(steps=0.0, collectives=0.0, data_wait=0.0)


def test_two_ledgers_are_two_attempts() -> None:
    assert TimeLedger().take(step=0).attempt != TimeLedger().take(step=0).attempt


def test_the_sum_is_the_time_that_passed() -> None:
    before = time.monotonic()
    ledger = TimeLedger()
    after = time.monotonic()
    total = 0.0
    for step in range(300):
        with ledger.spent(CAUSES[step % len(CAUSES)]):
            ledger.step_done()
        if step % 50 == 0:
            total += sum(ledger.take(step=step).seconds.values())
    at_least = time.monotonic() - after
    total += sum(ledger.take(step=300).seconds.values())
    at_most = time.monotonic() - before
    assert at_least - 1e-7 <= total <= at_most + 1e-7


def test_a_switch_costs_less_than_two_microseconds() -> None:
    ledger = TimeLedger()

    def seconds_per_switch(num_blocks: int = 2000) -> float:
        begin = time.perf_counter()
        for _ in range(num_blocks):
            with ledger.spent("data_wait"):
                pass
        return (time.perf_counter() - begin) / (2 * num_blocks)

    assert min(seconds_per_switch() for _ in range(20)) < 2e-6


def test_the_process_knows_its_age() -> None:
    script = "import time; time.sleep(0.3); from vitscale.train.goodput import *; print(seconds_since_process_start())"
    begin = time.monotonic()
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert 0.3 <= float(result.stdout) <= time.monotonic() - begin + 0.05
    assert seconds_since_process_start() > 0


def test_running_shares_go_on_from_the_attempts_before() -> None:
    clock = FakeClock()
    ledger = make_ledger(clock)
    shares = RunningShares({"restart": 30.0, "step": 50.0})
    ledger.become("step")
    clock.now += 10
    with ledger.spent("checkpoint"):
        clock.now += 10
    found = shares.add(ledger.take(step=1))
    assert found["productive"] == pytest.approx(0.6)
    assert found["restart"] == pytest.approx(0.3)
    assert found["checkpoint"] == pytest.approx(0.1)
    assert "step" not in found
    assert sum(found.values()) == pytest.approx(1.0)
    assert sum(shares.add(ledger.take(step=1)).values()) == pytest.approx(1.0)


def test_no_time_has_no_shares() -> None:
    clock = FakeClock()
    assert set(RunningShares({}).add(make_ledger(clock).take(step=0)).values()) == {0.0}
