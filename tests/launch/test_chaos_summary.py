"""The table of a rehearsal: what followed each fault, before the next one."""

from typing import Any

from vitscale.train.goodput_report import read_goodput
from vitscale_launch.chaos_faults import Injection
from vitscale_launch.chaos_plan import FaultKind
from vitscale_launch.chaos_summary import Effect, find_effects, format_summary

KILL = Injection(kind=FaultKind.KILL, rank=1, time=100.0, step=40)
NAN = Injection(kind=FaultKind.NAN, rank=0, time=200.0, step=70)
SLOW = Injection(kind=FaultKind.SLOW, rank=2, time=300.0, step=90)


def event(time: float, kind: str) -> dict[str, Any]:
    return {"time": time, "event": kind}


EVENTS = [
    event(50.0, "restart"),
    event(99.0, "resume"),
    event(100.0, "fault"),
    event(100.6, "worker_failed"),
    event(101.0, "restart"),
    event(120.5, "resume"),
    event(150.0, "checkpoint"),
    event(203.0, "skipped_step"),
    event(204.0, "skipped_step"),
]


def test_each_fault_has_what_came_before_the_next() -> None:
    assert find_effects([KILL, NAN, SLOW], EVENTS) == [
        Effect(injection=KILL, signs=("worker_failed", "restart"), seconds_to_notice=100.6 - 100.0, seconds_to_train=20.5),
        Effect(injection=NAN, signs=("skipped_step",), seconds_to_notice=3.0, seconds_to_train=None),
        Effect(injection=SLOW, signs=(), seconds_to_notice=None, seconds_to_train=None),
    ]


def test_a_start_without_a_restart_is_not_taken_for_one() -> None:
    (effect,) = find_effects([KILL], [event(101.0, "resume"), event(102.0, "worker_failed")])
    assert (effect.signs, effect.seconds_to_train) == (("worker_failed",), None)


def test_the_table_names_everything(tmp_path: Any) -> None:
    (tmp_path / "events.jsonl").write_text('{"time": 1.0, "event": "start", "step": 0, "message": ""}\n')
    lines = format_summary(find_effects([KILL, NAN, SLOW], EVENTS), read_goodput(tmp_path)).splitlines()
    assert lines[0].split("  ")[0] == "time"
    assert lines[1].endswith("kill   1     40          worker_failed, restart  0.6 s          20.5 s")
    assert lines[2].endswith("nan    0     70          skipped_step            3.0 s          -")
    assert "slow   2     90          not noticed             -              -" in lines[3]
    assert lines[4].startswith("goodput 0.0% of 0.0 minutes over 0 attempts")
