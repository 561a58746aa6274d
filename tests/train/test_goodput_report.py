"""The report: sums, counts, the interval between saves, and what it says of runs that have no, or broken, records."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.goodput_simulation import simulate
from vitscale.train.goodput_report import GoodputReport, read_goodput

PLACE = {"begin": 0.0, "monotonic": 0.0, "boot": "b", "unfinished_seconds": 0.0}


def report_of(folder: Path, records: list[dict[str, Any]], **options: bool) -> GoodputReport:
    (folder / "events.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_goodput(folder, **options)


def test_seconds_sum_to_the_wall_time_and_shares_to_one(tmp_path: Path) -> None:
    history = next(history for seed in range(100) if (history := simulate(seed, num_attempts=8)).totals()["stopped"])
    truth = history.totals()
    with_stops = report_of(tmp_path, history.records, include_stopped=True)
    assert with_stops.wall_seconds == pytest.approx(sum(truth.values()), rel=1e-6)
    report = read_goodput(tmp_path)
    assert report.wall_seconds == pytest.approx(sum(truth.values()) - truth["stopped"], rel=1e-6)
    assert "stopped" not in report.seconds
    assert sum(report.shares.values()) == pytest.approx(1.0)
    assert report.goodput == pytest.approx(truth["step"] / report.wall_seconds, abs=0.01)
    last = report.timeline.segments[-1]
    assert last.begin + last.seconds == pytest.approx(report.wall_seconds)


def test_counts(tmp_path: Path) -> None:
    slice_a = {"event": "time", "attempt": "a", "from_step": 0, "step": 9, "after_seconds": 0.0, "seconds": {"step": 9.0}, **PLACE}
    slice_b = slice_a | {"attempt": "b", "from_step": 4, "monotonic": 20.0}
    records = [
        slice_a,
        {"event": "lost_samples", "count": 3},
        {"event": "lost_samples", "count": 2},
        {"event": "skipped_step", "step": 6},
        {"event": "save_failed", "step": 8},
        {"event": "hang"},
        {"event": "straggler"},
        {"event": "straggler"},
        {"event": "restart", "reason": "hung"},
        slice_b,
        {"event": "skipped_step", "step": 6},
        {"event": "restart"},
    ]
    counts = report_of(tmp_path, records).counts
    assert (counts.attempts, counts.failures, counts.saves, counts.failed_saves) == (2, 1, 0, 1)
    assert (counts.lost_samples, counts.skipped_steps, counts.hangs, counts.stragglers) == (5, 1, 1, 2)
    assert counts.restarts == {"hung": 1, "not told": 1}
    assert counts.events["skipped_step"] == 2
    assert "time" not in counts.events


def test_the_interval_comes_from_what_was_measured(tmp_path: Path) -> None:
    first = {"event": "time", "attempt": "a", "from_step": 0, "step": 100, "after_seconds": 0.0, **PLACE}
    records = [
        first | {"seconds": {"step": 900.0, "checkpoint": 20.0, "data_wait": 80.0}},
        *({"event": "checkpoint", "step": step} for step in (25, 50, 75, 100)),
        {"event": "restart", "time": 1000.0},
        first | {"attempt": "b", "from_step": 100, "step": 200, "monotonic": 1000.0, "seconds": {"start_up": 30.0, "step": 970.0}},
    ]
    report = report_of(tmp_path, records)
    found = report.save_interval
    assert found is not None
    assert report.mean_seconds_between_failures == pytest.approx(2000.0)
    assert (found.model.save_stall_seconds, found.model.restart_seconds) == (5.0, 30.0)
    assert found.seconds == pytest.approx(1950 / 4)
    assert found.best_seconds == pytest.approx((2 * 5 * 2000) ** 0.5)
    assert found.best_steps == round(found.best_seconds / (1950 / 200))
    assert found.expected_goodput < found.best_expected_goodput < 1870 / 1950


def test_a_run_without_failures_has_no_interval_to_compute(tmp_path: Path) -> None:
    report = report_of(tmp_path, [{"event": "checkpoint", "step": 1}])
    assert report.save_interval is None
    assert report.mean_seconds_between_failures is None


def test_a_run_of_an_earlier_version_has_events_and_a_note(tmp_path: Path) -> None:
    report = report_of(tmp_path, [{"event": "start", "step": 0}])
    assert report.wall_seconds == 0
    assert report.goodput == 0
    assert sum(report.shares.values()) == 0
    assert "no records of time" in report.notes[0]
    assert len(report.records) == 1


def test_torn_lines_are_told(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n{"event": "che')
    assert any("1 line of" in note for note in read_goodput(tmp_path).notes)


def test_json_has_every_figure(tmp_path: Path) -> None:
    values = json.loads(report_of(tmp_path, simulate(7, num_attempts=8).records).to_json())
    assert sum(values["shares"].values()) == pytest.approx(1.0)
    assert values["save_interval"]["model"]["save_stall_seconds"] > 0
    assert len(values["attempts"]) == values["counts"]["attempts"]
