"""The timeline: random histories against their truth, and each thing that a file of events may be missing or have wrong."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.goodput_simulation import simulate
from vitscale.train.goodput_timeline import Timeline, make_timeline, without

TOLERANCE = 0.01


def slice_record(
    attempt: str, *, begin: float, after: float = 0.0, from_step: int = 0, step: int = 0, boot: str = "b", **fields: Any
) -> dict[str, Any]:
    """A `time` event whose monotonic clock reads as its wall clock does, unless `fields` says otherwise."""
    place = {"attempt": attempt, "begin": begin, "monotonic": begin, "boot": boot, "after_seconds": after}
    return {"event": "time", "step": step, "from_step": from_step, **place, "unfinished_seconds": 0.0, "seconds": {}, **fields}


def totals(timeline: Timeline) -> dict[str, float]:
    found: dict[str, float] = {}
    for segment in timeline.segments:
        found[segment.cause] = found.get(segment.cause, 0.0) + segment.seconds
    return found


def assert_gapless(timeline: Timeline) -> None:
    now = 0.0
    for segment in timeline.segments:
        assert segment.begin == pytest.approx(now, abs=1e-6)
        now += segment.seconds


def assert_shares(found: dict[str, float], truth: dict[str, float], *, tolerance: float = TOLERANCE) -> None:
    wall = sum(truth.values())
    assert sum(found.values()) == pytest.approx(wall, rel=TOLERANCE)
    for cause in found | truth:
        assert abs(found.get(cause, 0.0) - truth.get(cause, 0.0)) <= tolerance * wall, (cause, found, truth)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), num_attempts=st.integers(1, 12))
def test_shares_are_those_of_the_truth(seed: int, num_attempts: int) -> None:
    history = simulate(seed, num_attempts=num_attempts)
    timeline = make_timeline(history.records)
    assert_gapless(timeline)
    assert_shares(totals(timeline), history.totals())
    assert timeline.notes == ()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), num_attempts=st.integers(2, 8), jump=st.sampled_from([60.0, 1e5, 1e9]))
def test_a_clock_that_is_set_between_attempts_changes_nothing_but_notes(seed: int, num_attempts: int, jump: float) -> None:
    history = simulate(seed, num_attempts=num_attempts, clock_jumps=jump)
    timeline = make_timeline(history.records)
    assert_gapless(timeline)
    truth, found = history.totals(), totals(timeline)
    assert sum(found.values()) == pytest.approx(sum(truth.values()), rel=1e-6)
    # Events of the supervision have the wall clock alone: which part of a gap came before it noticed may then be guessed.
    between = ("lost_work", "restart")
    joined = [{**{c: s for c, s in d.items() if c not in between}, "between": sum(d.get(c, 0.0) for c in between)} for d in (found, truth)]
    assert_shares(*joined)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), num_attempts=st.integers(2, 8))
def test_without_supervision_a_death_is_off_by_at_most_an_interval_of_reports(seed: int, num_attempts: int) -> None:
    history = simulate(seed, num_attempts=num_attempts, is_supervised=False)
    timeline = make_timeline(history.records)
    assert_gapless(timeline)
    truth, found = history.totals(), totals(timeline)
    num_deaths = sum(attempt.outcome == "died" for attempt in timeline.attempts)
    assert len(timeline.notes) == num_deaths
    # The longest that these histories go without a report: five steps, a save, an evaluation and the first step of an attempt.
    assert abs(found.get("lost_work", 0.0) - truth["lost_work"]) <= num_deaths * (5 * 1.1 + 3 + 8 + 9) + 1e-3
    assert sum(found.values()) == pytest.approx(sum(truth.values()), rel=1e-6)


def test_steps_after_the_checkpoint_are_lost_once_another_attempt_begins_before_them() -> None:
    first = [
        slice_record("a", begin=0.0, seconds={"start_up": 10.0}),
        slice_record("a", begin=0.0, after=10.0, step=10, seconds={"step": 30.0, "data_wait": 10.0}),
        slice_record("a", begin=0.0, after=50.0, from_step=10, step=20, seconds={"step": 20.0, "checkpoint": 5.0}),
    ]
    assert totals(make_timeline(first)) == {"start_up": 10.0, "data_wait": 10.0, "step": 50.0, "checkpoint": 5.0}
    again = slice_record("b", begin=75.0, from_step=5, step=5, seconds={"start_up": 3.0})
    assert totals(make_timeline([*first, {"event": "restart", "time": 75.0}, again])) == {
        "start_up": 10.0,
        "data_wait": 5.0,
        "step": 15.0,
        "lost_work": 40.0,
        "checkpoint": 5.0,
        "restart": 3.0,
    }


def test_what_a_failed_process_had_begun_is_lost_and_what_a_stopped_one_did_is_not() -> None:
    hung = slice_record("a", begin=0.0, step=4, seconds={"step": 70.0}, unfinished_seconds=60.0)
    failed, stopped = ({"event": "ended", "exit_code": code} for code in (1, 75))
    again = slice_record("b", begin=70.0, from_step=4, step=4)
    assert totals(make_timeline([failed, hung, failed, again])) == pytest.approx({"step": 10.0, "lost_work": 60.0})
    assert totals(make_timeline([hung, stopped, again])) == {"step": 70.0}


def test_a_gap_goes_to_what_the_supervision_says_of_it() -> None:
    records: list[dict[str, Any]] = [
        slice_record("a", begin=100.0, step=5, seconds={"step": 50.0}),
        {"event": "hang", "time": 170.0},
        {"event": "wait", "time": 174.0, "seconds": 1.0},
        {"event": "wait", "time": 194.0, "seconds": 21.0},
        {"event": "shrink", "time": 198.0, "seconds": 5.0},
        slice_record("b", begin=210.0, from_step=5, step=5, seconds={"start_up": 8.0}),
    ]
    assert totals(make_timeline(records)) == {"step": 50.0, "lost_work": 20.0, "waiting_for_resources": 25.0, "restart": 23.0}


def test_a_death_noticed_before_the_last_slice_leaves_no_tail() -> None:
    records: list[dict[str, Any]] = [
        slice_record("a", begin=100.0, seconds={"step": 40.0}),
        {"event": "worker_failed", "time": 145.0},
        slice_record("a", begin=100.0, after=40.0, step=5, seconds={"step": 10.0}),
        {"event": "restart", "time": 155.0},
        slice_record("b", begin=170.0, from_step=5, step=5),
    ]
    assert totals(make_timeline(records)) == {"step": 50.0, "restart": 20.0}


def test_a_stop_is_no_failure_and_its_time_can_be_cut_out() -> None:
    records = [
        slice_record("a", begin=0.0, step=5, seconds={"step": 50.0}),
        {"event": "ended", "exit_code": 75},
        slice_record("b", begin=1000.0, from_step=5, step=10, seconds={"start_up": 10.0, "step": 40.0}),
    ]
    timeline = make_timeline(records)
    assert totals(timeline) == {"step": 90.0, "stopped": 950.0, "start_up": 10.0}
    shorter = without(timeline, "stopped")
    assert_gapless(shorter)
    assert totals(shorter) == {"step": 90.0, "start_up": 10.0}
    assert [attempt.outcome for attempt in timeline.attempts] == ["stopped", "open"]


def test_a_resource_waited_for_before_the_first_start_counts() -> None:
    records = [{"event": "wait", "time": 9.0, "seconds": 9.0}, slice_record("a", begin=9.0, seconds={"start_up": 1.0})]
    assert totals(make_timeline(records)) == {"waiting_for_resources": 9.0, "start_up": 1.0}


def test_a_machine_whose_clock_is_behind_leaves_no_gap_and_a_note() -> None:
    records = [
        slice_record("a", begin=5000.0, step=5, boot="one", seconds={"step": 50.0}),
        {"event": "restart", "time": 5060.0},
        slice_record("b", begin=1000.0, from_step=5, step=5, boot="two", seconds={"start_up": 10.0}),
    ]
    timeline = make_timeline(records)
    assert totals(timeline) == {"step": 50.0, "restart": 10.0}
    assert "counts as none" in timeline.notes[0]


def test_two_attempts_of_one_process_share_its_age() -> None:
    records = [
        slice_record("a", begin=0.0, step=5, seconds={"start_up": 30.0, "step": 50.0}),
        {"event": "finished"},
        slice_record("b", begin=0.0, from_step=5, step=5, seconds={"start_up": 90.0}),
    ]
    assert totals(make_timeline(records)) == {"start_up": 40.0, "step": 50.0}


def test_a_slice_that_was_not_written_leaves_a_hole_that_is_told() -> None:
    records = [
        slice_record("a", begin=0.0, seconds={"start_up": 10.0}),
        slice_record("a", begin=0.0, after=25.0, from_step=5, step=9, seconds={"step": 20.0}),
    ]
    assert totals(make_timeline(records)) == {"start_up": 10.0, "unrecorded": 15.0, "step": 20.0}


@pytest.mark.parametrize(
    "odd",
    [
        {"event": "of_a_later_version", "seconds": "many"},
        {"event": "time", "of": "a later version"},
        {"event": "time", "attempt": "a", "begin": 1, "monotonic": 1, "boot": "", "seconds": 3, "step": 1},
        {"event": "wait", "seconds": None},
    ],
)
def test_unknown_events_are_passed_over(odd: dict[str, Any]) -> None:
    records = [
        slice_record("a", begin=0.0, seconds={"start_up": 10.0}),
        odd,
        slice_record("a", begin=0.0, after=10.0, seconds={"stop": 1.0}),
    ]
    assert totals(make_timeline([odd, *records])) == {"start_up": 10.0, "stop": 1.0}


def test_no_events_are_no_time() -> None:
    assert make_timeline([]) == Timeline(segments=(), attempts=(), notes=())
