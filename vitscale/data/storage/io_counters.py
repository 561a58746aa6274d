"""Counts of what a storage has done in this process, exact under threads and usable after a fork."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping


class IoCounters:
    """Named counts, starting at 0. A copy in another process (by pickle) starts anew."""

    def __init__(self, *names: str) -> None:
        self._counts = dict.fromkeys(names, 0)
        self._forget_lock()

    def add(self, **amounts: int) -> None:
        """Add to the counts named."""
        if self._process != os.getpid():
            self._forget_lock()
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount

    def values(self) -> dict[str, int]:
        """The counts by name."""
        return dict(self._counts)

    def __reduce__(self) -> tuple[type["IoCounters"], tuple[str, ...]]:
        return IoCounters, tuple(self._counts)

    def _forget_lock(self) -> None:
        """After a fork, a thread that is not there any more may hold the lock."""
        self._process = os.getpid()
        self._lock = threading.Lock()


class IoMeter:
    """What has been counted since it was last asked; `counts` gives cumulative counts."""

    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts
        self._seen: Counter[str] = Counter()

    def since_last(self) -> dict[str, int]:
        """The counts that grew, and by how much."""
        now = Counter(self._counts())
        spent, self._seen = now - self._seen, now
        return dict(spent)
