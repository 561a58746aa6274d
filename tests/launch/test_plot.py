"""The sweep's picture."""

import importlib.util
from pathlib import Path

import PIL.Image
import pytest

from vitscale.config import UsageError
from vitscale_launch.plot import draw_plot, plot_lines, require_matplotlib
from vitscale_launch.results import TrialResult
from vitscale_launch.sweep import PlotConfig, Value

PLOT = PlotConfig(x="size", line="mode")


def result(size: int, mode: str, metric: float | None, **more: Value) -> TrialResult:
    return TrialResult(name=f"{size}{mode}", values={"size": size, "mode": mode, **more}, metric=metric, error=None)


def test_lines_are_sorted_and_failed_trials_are_gaps() -> None:
    results = [result(12, "a", 0.75), result(8, "a", 0.5), result(8, "b", 0.25), result(12, "b", None)]
    assert plot_lines(PLOT, results) == {"a": [(8.0, 0.5), (12.0, 0.75)], "b": [(8.0, 0.25)]}


def test_trials_that_differ_elsewhere_are_averaged() -> None:
    results = [result(8, "a", 0.5, seed=1), result(8, "a", 0.75, seed=2)]
    assert plot_lines(PLOT, results) == {"a": [(8.0, 0.625)]}
    assert plot_lines(PlotConfig(x="size"), [result(8, "a", 0.5), result(8, "b", 0.25)]) == {None: [(8.0, 0.375)]}


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "sweep" / "plot.png"
    draw_plot(PLOT, [result(8, "a", 0.5), result(12, "a", 0.75), result(8, "b", None)], metric="top1", path=path)
    with PIL.Image.open(path) as picture:
        shades = picture.convert("L").getextrema()
    assert shades == (0, 255)


def test_a_missing_matplotlib_is_told_before_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    require_matplotlib()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"vitscale\[plot\]"):
        require_matplotlib()
