"""The values handed to observers."""

import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from vitscale.train.goodput import TimeLedger
from vitscale.train.reports import DataReport, StepReport, Timing


def test_figures_are_everything_that_was_measured() -> None:
    timing = Timing(images_per_second=100.0, data_wait_share=0.25, step_seconds_p50=0.1, step_seconds_p99=0.2)
    report = StepReport(
        step=3,
        samples=24,
        values={"loss": 1.5, "lr": 0.1},
        timing=timing,
        data=DataReport(lost_samples=3, io={"retries": 2}),
        memory_gib=0.5,
        spent=TimeLedger().take(step=3),
        shares={"productive": 1.0},
    )
    assert report.figures == {
        "loss": 1.5,
        "lr": 0.1,
        "images_per_second": 100.0,
        "data_wait_share": 0.25,
        "lost_samples": 3,
        "io_retries": 2,
        "step_seconds_p50": 0.1,
        "step_seconds_p99": 0.2,
        "memory_gib": 0.5,
    }
    with pytest.raises(FrozenInstanceError):
        report.step = 4  # type: ignore[misc]


def test_every_kind_of_event_is_documented() -> None:
    root = Path(__file__).parents[2]
    sources = [path.read_text() for folder in ("vitscale", "launch") for path in (root / folder).rglob("*.py")]
    kinds = {kind for source in sources for kind in re.findall(r'event\(\s*"(\w+)"', source)}
    assert {"checkpoint", "lost_samples", "wait"} <= kinds, "this is how they are written"
    documented = (root / "docs" / "events.md").read_text().partition("## Kinds")[2]
    kinds |= {"time", "hang", "start", "resume", "straggler", "straggler_recovered"}
    assert [kind for kind in sorted(kinds) if f"`{kind}`" not in documented] == []
