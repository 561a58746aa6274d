"""Figures of speed, from what the ledger of time has counted between two reports."""

from vitscale.train.goodput import TimeSlice
from vitscale.train.reports import Timing


def timing_of(spent: TimeSlice, *, images_per_step: int) -> Timing:
    """Speed of the steps in `spent`; evaluations, saves and reports are no part of them.

    A GPU may lag behind the host. Then a step that waits for it takes the time of those before, and only sums are exact.
    """
    ordered = sorted(spent.step_seconds)
    total = sum(ordered)
    return Timing(
        images_per_second=images_per_step * len(ordered) / total if total else 0.0,
        data_wait_share=spent.seconds["data_wait"] / total if total else 0.0,
        step_seconds_p50=_quantile(ordered, 0.50),
        step_seconds_p99=_quantile(ordered, 0.99),
    )


def _quantile(ordered: list[float], fraction: float) -> float:
    """Nearest rank; 0 for no values."""
    return ordered[min(len(ordered) - 1, round(fraction * (len(ordered) - 1)))] if ordered else 0.0
