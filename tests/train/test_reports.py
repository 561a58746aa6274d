"""The values handed to observers."""

from dataclasses import FrozenInstanceError

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
