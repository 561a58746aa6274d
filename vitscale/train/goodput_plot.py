"""The picture of a run's wall time: what each stretch of it was spent on, attempt after attempt. Needs matplotlib (extra `plot`)."""

import importlib.util
from pathlib import Path
from typing import Any

from vitscale.config import UsageError
from vitscale.train.goodput_report import GoodputReport
from vitscale.train.goodput_timeline import RUN_CAUSES, Timeline

_NUM_BINS = 240
_MOST_MARKS = 60
_COLOURS = {
    "step": "#4c9f70",
    "compile": "#a3d9b1",
    "data_wait": "#f2c14e",
    "checkpoint": "#3d6fb6",
    "evaluation": "#7fb2e5",
    "report": "#b9d3ee",
    "start_up": "#9a9a9a",
    "stop": "#c9c9c9",
    "lost_work": "#c0392b",
    "restart": "#e67e22",
    "waiting_for_resources": "#8e5ea2",
    "unrecorded": "#2b2b2b",
    "stopped": "#eeeeee",
}


def require_matplotlib() -> None:
    """Raises `UsageError` when the optional library is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed: pip install 'vitscale[plot]', or leave --plot out.")


def bin_seconds(timeline: Timeline, *, num_bins: int) -> dict[str, list[float]]:
    """Seconds by cause in `num_bins` equal stretches of the wall time, so that a picture stays readable however long the run."""
    end = max((segment.begin + segment.seconds for segment in timeline.segments), default=0.0)
    width = end / num_bins
    bins: dict[str, list[float]] = {}
    for segment in timeline.segments:
        row = bins.setdefault(segment.cause, [0.0] * num_bins)
        first = min(num_bins - 1, int(segment.begin / width))
        last = min(num_bins - 1, int((segment.begin + segment.seconds) / width))
        for number in range(first, last + 1):
            begin = max(segment.begin, number * width)
            until = segment.begin + segment.seconds if number == last else (number + 1) * width
            row[number] += max(0.0, until - begin)
    return bins


def write_plot(report: GoodputReport, path: Path) -> None:
    """Draw the shares over the wall time into a PNG. Raises `UsageError` where there is nothing to draw, or it cannot be written."""
    require_matplotlib()
    if not report.wall_seconds:
        raise UsageError(f"{report.run_dir}: there are no records of time to draw")
    # Optional, slow to import, and without a display: the object interface of the picture alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure.add_subplot(), report)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=130)
    except OSError as error:
        raise UsageError(f"--plot {path}: cannot be written: {error.strerror or error}") from None


def _draw(axes: Any, report: GoodputReport) -> None:
    unit, unit_seconds = _unit(report.wall_seconds)
    bins = bin_seconds(report.timeline, num_bins=_NUM_BINS)
    width = report.wall_seconds / _NUM_BINS
    begins = [number * width / unit_seconds for number in range(_NUM_BINS)]
    below = [0.0] * _NUM_BINS
    order = ["step", *(cause for cause in RUN_CAUSES if cause != "step")]
    for cause in sorted(bins, key=lambda cause: order.index(cause) if cause in order else len(order)):
        heights = [100 * seconds / width for seconds in bins[cause]]
        label = f"{cause} {report.shares[cause]:.1%}"
        colour = _COLOURS.get(cause, "#d4a5a5")
        axes.bar(begins, heights, bottom=below, width=width / unit_seconds, align="edge", color=colour, label=label, linewidth=0)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    # What lies between two attempts belongs to the later one: its first segment begins where the earlier one ended.
    begins_of = {segment.attempt: segment.begin for segment in reversed(report.timeline.segments)}
    ends = [begin for attempt, begin in begins_of.items() if attempt]
    if len(ends) <= _MOST_MARKS:
        for end in ends:
            axes.axvline(end / unit_seconds, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, report.wall_seconds / unit_seconds)
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"wall time, {unit} (dotted: an attempt ended)")
    axes.set_ylabel("share of the time, %")
    axes.set_title(f"{report.run_dir.name}: goodput {report.goodput:.1%}, {report.counts.attempts} attempts")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _unit(seconds: float) -> tuple[str, float]:
    return next((unit for unit in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)) if seconds >= 2 * unit[1]), ("seconds", 1.0))
