"""The text: durations people can read, a line for every event, a meaning for every cause."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from vitscale.train.goodput_report import Counts, GoodputReport
from vitscale.train.goodput_text import MEANINGS, duration, event_lines, print_goodput
from vitscale.train.goodput_timeline import RUN_CAUSES, Timeline

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4234, "0.42 s"), (12.34, "12.3 s"), (59.97, "60.0 s"), (245.0, "4 min 05 s"), (3 * 3600 + 440, "3 h 07 min"), (183600, "2 d 03 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_every_cause_has_a_meaning() -> None:
    assert set(MEANINGS) == set(RUN_CAUSES)


def test_an_event_is_one_line() -> None:
    lines = list(event_lines([{"event": "restart", "time": 0, "step": 3, "message": "why\ntrace"}, {"event": "odd", "value": 1}]))
    assert lines[0].endswith("         3  restart        why")
    assert lines[1].split() == ["-" * 19, "odd", "value=1"]


def test_only_causes_that_took_time_are_shown_and_notes_are_not_markup() -> None:
    counts = Counts(
        attempts=0, failures=0, restarts={}, saves=0, failed_saves=0, lost_samples=0, skipped_steps=0, hangs=0, stragglers=0, events={}
    )
    report = GoodputReport(
        run_dir=Path("runs/base"),
        seconds={"step": 3.0, "lost_work": 1.0, "restart": 0.0, "of_a_later_version": 0.0},
        counts=counts,
        mean_seconds_between_failures=None,
        save_interval=None,
        timeline=Timeline(segments=(), attempts=(), notes=()),
        notes=("[red] is no colour",),
        records=(),
        num_bytes=0,
    )
    stream = io.StringIO()
    print_goodput(report, console=Console(file=stream, width=200))
    text = stream.getvalue()
    assert "75.00%" in text
    assert "restart  " not in text
    assert "note: [red] is no colour" in text


DOCUMENTATION = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")


def test_every_cause_is_documented() -> None:
    assert [cause for cause in RUN_CAUSES if f"| `{cause}` |" not in DOCUMENTATION] == []


def test_every_kind_of_event_that_is_written_is_documented() -> None:
    written = re.compile(r"""(?:\.event|\.record)\(\s*"([a-z_]+)"|"event": "([a-z_]+)\"""")
    kinds = {
        kind
        for folder in ("vitscale", "launch")
        for path in (ROOT / folder).rglob("*.py")
        for found in written.finditer(path.read_text(encoding="utf-8"))
        for kind in found.groups()
        if kind
    }
    assert {"checkpoint", "hang", "time"} <= kinds, "the search finds what it should"
    assert sorted(kind for kind in kinds if f"`{kind}`" not in DOCUMENTATION) == []
