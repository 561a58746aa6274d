"""Where the wall time of the steps between two reports went."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vitscale.train.reports import Timing


@dataclass(frozen=True, kw_only=True)
class HostSeconds:
    """What this rank's host did in a window of steps: all of it, and of that waiting for the others and for data."""

    steps: float
    collectives: float
    data_wait: float


class StepClock:
    """Times whole steps and the part of each spent waiting for data. Evaluations and saves are not counted.

    A GPU may lag behind the host. Then a step that waits for it takes the time of those before, and only sums are exact.
    `collective_seconds` says how long this process has waited in collectives so far.
    """

    def __init__(self, *, collective_seconds: Callable[[], float] = lambda: 0.0) -> None:
        self._collectives_so_far = collective_seconds
        self._collective_seconds = 0.0
        self._step_seconds: list[float] = []
        self._wait_seconds = 0.0
        self.skip()

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the body as time spent waiting for data."""
        begin = time.perf_counter()
        yield
        self._wait_seconds += time.perf_counter() - begin

    def step_done(self) -> None:
        """Mark the end of a step and the begin of the next one."""
        now = time.perf_counter()
        self._step_seconds.append(now - self._begin)
        self._collective_seconds += self._collectives_so_far() - self._collectives_before
        self.skip()

    def skip(self) -> None:
        """Start the next step now: what happened since the last one was no training."""
        self._begin = time.perf_counter()
        self._collectives_before = self._collectives_so_far()

    @property
    def host_seconds(self) -> HostSeconds:
        """The sums since the last `collect`."""
        return HostSeconds(steps=sum(self._step_seconds), collectives=self._collective_seconds, data_wait=self._wait_seconds)

    def collect(self, *, images_per_step: int) -> Timing:
        """The figures since the last call, which are then forgotten."""
        ordered = sorted(self._step_seconds)
        total = sum(ordered)
        timing = Timing(
            images_per_second=images_per_step * len(ordered) / total if total else 0.0,
            data_wait_share=self._wait_seconds / total if total else 0.0,
            step_seconds_p50=_quantile(ordered, 0.50),
            step_seconds_p99=_quantile(ordered, 0.99),
        )
        self._step_seconds, self._wait_seconds, self._collective_seconds = [], 0.0, 0.0
        return timing


def _quantile(ordered: list[float], fraction: float) -> float:
    """Nearest rank; 0 for no values."""
    return ordered[min(len(ordered) - 1, round(fraction * (len(ordered) - 1)))] if ordered else 0.0
