"""Which ranks are slow: compares the seconds that each rank has spent on its own work between two reports."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitscale.train.goodput import HostSeconds

_AT_ONCE = 5.0
"""So many times the others' seconds name a rank in its first window."""
_NUM_WINDOWS = 2
_MIN_EXCESS_SECONDS = 0.1
"""What a rank must lose in a window to be worth naming: less is what a busy host takes from anybody by chance."""


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """A rank that is slow, or one that no longer is: its own work in the last window against the median of the other ranks."""

    rank: int
    seconds: float
    others_seconds: float

    @property
    def ratio(self) -> float:
        """How many times as long as the others."""
        return self.seconds / self.others_seconds if self.others_seconds > 0 else float("inf")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a window has shown: ranks that are named now, and named ones that are as fast as the others again."""

    slow: tuple[Straggler, ...]
    recovered: tuple[Straggler, ...]


def own_seconds(host: HostSeconds, *, device: str, forward_seconds: float | None) -> float | None:
    """A rank's own work in a window: everything but collectives on the CPU, the forward passes and the wait for data on a GPU.

    None where it is not known: on a GPU at ZeRO stage 3.
    """
    if device == "cpu":
        return max(0.0, host.steps - host.collectives)
    return None if forward_seconds is None else forward_seconds + host.data_wait


class StragglerWatch:
    """Names a rank whose own work takes `factor` times the median of the others in two windows on end, or five times in one.

    A window with less than 0.1 seconds between a rank and the others says nothing about it. A named rank is named again only
    after it has been in line for two windows. Every rank may judge, all come to the same; the seconds are all that counts.
    """

    def __init__(self, *, factor: float) -> None:
        self._factor = factor
        self._slow_windows: dict[int, int] = {}
        self._good_windows: dict[int, int] = {}

    def judge(self, own: Sequence[float | None]) -> Judgement:
        """Take in a window: by rank, the seconds of its own work, None where they are not known."""
        slow, recovered = [], []
        for straggler in compare({rank: seconds for rank, seconds in enumerate(own) if seconds is not None}):
            if self._is_slow(straggler):
                slow += [straggler] if self._count_slow(straggler) else []
            else:
                recovered += [straggler] if self._count_good(straggler.rank) else []
        return Judgement(slow=tuple(slow), recovered=tuple(recovered))

    def _is_slow(self, straggler: Straggler) -> bool:
        excess = straggler.seconds - straggler.others_seconds
        return excess >= _MIN_EXCESS_SECONDS and straggler.seconds >= self._factor * straggler.others_seconds

    def _count_slow(self, straggler: Straggler) -> bool:
        """Whether it is to be named now."""
        rank = straggler.rank
        if rank in self._good_windows:
            self._good_windows[rank] = 0
            return False
        self._slow_windows[rank] = self._slow_windows.get(rank, 0) + 1
        if self._slow_windows[rank] < _NUM_WINDOWS and straggler.ratio < max(_AT_ONCE, self._factor):
            return False
        self._good_windows[rank] = 0
        return True

    def _count_good(self, rank: int) -> bool:
        """Whether it was named and is now as fast as the others again."""
        self._slow_windows.pop(rank, None)
        if rank not in self._good_windows:
            return False
        self._good_windows[rank] += 1
        if self._good_windows[rank] < _NUM_WINDOWS:
            return False
        del self._good_windows[rank]
        return True


def straggler_message(straggler: Straggler, *, hosts: Sequence[str], is_slow: bool) -> str:
    """What the user reads in the ledger; `hosts` by rank."""
    who = f"rank {straggler.rank} on {hosts[straggler.rank]}"
    if not is_slow:
        return f"{who} is as fast as the others again"
    return (
        f"{who} is slow: its own work, data included, took {straggler.seconds:.2f} s since the last report, {straggler.ratio:.1f} times"
        f" the {straggler.others_seconds:.2f} s of the others, who wait for it in every step"
    )


def compare(seconds: Mapping[int, float]) -> list[Straggler]:
    """Each rank beside the median of the others; nothing for a rank alone."""
    if len(seconds) < 2:
        return []
    ordered = sorted(seconds.values())
    return [
        Straggler(rank=rank, seconds=own, others_seconds=_median_without(ordered, position=bisect_left(ordered, own)))
        for rank, own in seconds.items()
    ]


def _median_without(ordered: Sequence[float], *, position: int) -> float:
    """The median of all values but the one at `position`."""

    def at(place: int) -> float:
        return ordered[place if place < position else place + 1]

    rest = len(ordered) - 1
    return (at((rest - 1) // 2) + at(rest // 2)) / 2
