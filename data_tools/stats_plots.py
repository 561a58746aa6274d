"""Draws what `stats` measured, a PNG each: classes, sides, proportions, bytes and pixel values. Needs matplotlib (extra `plot`)."""

import importlib.util
import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitscale.config import UsageError

from .atomic import replace_file
from .stats import ASPECT_EDGES, BYTE_EDGES, SIDE_EDGES, Stats, label_order

_COLOURS = ("tab:red", "tab:green", "tab:blue")
_MOST_BARS = 40


def require_matplotlib() -> None:
    """Raises `UsageError` when the optional library is missing; asked before anything is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plots needs matplotlib, which is not installed: pip install 'vitscale[plot]', or leave --plots out.")


def write_plots(stats: Stats, folder: Path) -> list[Path]:
    """Draw every plot there is something to show in, and give the files. Raises `OSError`."""
    counts = stats.counts
    drawings: dict[str, Callable[[Any], None] | None] = {
        "classes": (lambda axes: _draw_classes(axes, stats)) if counts.labels else None,
        "short_side": (lambda axes: _draw_histogram(axes, counts.side_histogram, SIDE_EDGES, label="shorter side, pixels")),
        "aspect_ratio": (lambda axes: _draw_histogram(axes, counts.aspect_histogram, ASPECT_EDGES, label="width / height", base=2)),
        "bytes": (lambda axes: _draw_histogram(axes, counts.byte_histogram, BYTE_EDGES, label="bytes per sample", base=10)),
        "pixels": (lambda axes: _draw_pixels(axes, stats)),
    }
    if not counts.num_images:
        drawings |= {"short_side": None, "aspect_ratio": None, "pixels": None}
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in drawings.items():
        if draw is not None:
            replace_file(folder / f"{name}.png", _picture(draw))
            written.append(folder / f"{name}.png")
    return written


def _picture(draw: Callable[[Any], None]) -> bytes:
    # Optional, slow to import, and without a display: the object interface of the picture alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.grid(alpha=0.3)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def _draw_classes(axes: Any, stats: Stats) -> None:
    """A bar per class while there is room for names, else the counts by rank, which shows a long tail."""
    labels, names = stats.counts.labels, stats.dataset.classes
    if len(labels) > _MOST_BARS:
        axes.plot(range(1, len(labels) + 1), sorted(labels.values(), reverse=True))
        axes.set_yscale("log")
        axes.set_xlabel("class, by rank")
    else:
        ordered = sorted(labels, key=label_order)
        known = [names[int(label)] if names and label.isdecimal() and int(label) < len(names) else label for label in ordered]
        axes.bar(range(len(ordered)), [labels[label] for label in ordered])
        # A dollar sign would start a formula.
        axes.set_xticks(range(len(ordered)), [name[:24].replace("$", r"\$") for name in known], rotation=60, ha="right", fontsize=8)
    axes.set_ylabel("samples")


def _draw_histogram(axes: Any, histogram: Counter[int], edges: Sequence[float], *, label: str, base: int | None = None) -> None:
    """Bars between the edges; what lies outside is added to the first and the last."""
    last = len(edges) - 2
    heights = [0] * (last + 1)
    for place, count in histogram.items():
        heights[min(max(place - 1, 0), last)] += count
    used = [place for place, height in enumerate(heights) if height]
    first, stop = used[0], used[-1] + 1
    axes.stairs(heights[first:stop], edges[first : stop + 1], fill=True)
    if base is not None:
        axes.set_xscale("log", base=base)
    axes.set_xlabel(label)
    axes.set_ylabel("samples")


def _draw_pixels(axes: Any, stats: Stats) -> None:
    for values, colour, mean, std in zip(stats.counts.pixel_values, _COLOURS, stats.mean, stats.std, strict=True):
        axes.stairs(values / values.sum(), range(257), color=colour, label=f"mean {mean:.4f}, std {std:.4f}")
    axes.set_xlabel("value")
    axes.set_ylabel("share of pixels")
    axes.legend()
