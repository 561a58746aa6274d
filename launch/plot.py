"""The sweep's picture: the metric over one setting, a line for each value of another."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from vitscale.config import UsageError

from .results import TrialResult
from .sweep import PlotConfig, Value


def require_matplotlib() -> None:
    """Raises `UsageError` when the optional library is missing; asked before a sweep starts."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "the sweep's plot needs matplotlib, which is not installed: pip install 'vitscale[plot]', or leave the plot out (plot=null)"
        )


def plot_lines(plot: PlotConfig, results: Sequence[TrialResult]) -> dict[Value, list[tuple[float, float]]]:
    """(x, metric) points of every line, sorted by x; the mean where trials differ in further settings, without failed ones."""
    collected: dict[Value, dict[float, list[float]]] = {}
    for result in results:
        x = result.values[plot.x]
        assert isinstance(x, int | float), "checked when the sweep was read"
        points = collected.setdefault(result.values[plot.line] if plot.line else None, {})
        if result.metric is not None:
            points.setdefault(float(x), []).append(result.metric)
    return {line: [(x, sum(ys) / len(ys)) for x, ys in sorted(points.items())] for line, points in collected.items()}


def draw_plot(plot: PlotConfig, results: Sequence[TrialResult], *, metric: str, path: Path) -> None:
    """Draw the lines of `plot_lines` into `path`."""
    # Optional, slow to import, and without a display: the object interface of the picture alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines = plot_lines(plot, results)
    for line, points in lines.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=str(line))
    axes.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
    axes.set_xlabel(plot.x)
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    if plot.line is not None:
        axes.legend(title=plot.line)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
