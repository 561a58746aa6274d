"""Repeats requests that a network or an object store failed for the moment, with growing random pauses and a bound on both."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class TransientError(Exception):
    """A request failed in a way that may be over at the next try; the message says how, in a few words."""

    def __init__(self, message: str, *, num_tries: int | None = None) -> None:
        super().__init__(message)
        self.num_tries = num_tries
        """Tries after which this kind of failure is no longer taken for a passing one; None: those of the policy."""


class GaveUpError(Exception):
    """The last try failed too; the message says how often and how long it was tried, and how the last one failed."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How patient a read is. Pauses have "full jitter": uniform between 0 and a bound that doubles from try to try
    (Brooker 2015, "Exponential Backoff And Jitter"), so that many ranks do not come back at the same moment.

    The defaults absorb nine failures in a row within 7.7 s of pauses at most, and outages of about half a minute.
    """

    num_tries: int = 14
    first_pause_seconds: float = 0.015
    """Bound of the first pause."""
    longest_pause_seconds: float = 20.0
    total_seconds: float = 120.0
    """No try starts later than this after the first."""

    def pause_bound(self, num_failures: int) -> float:
        """Longest pause in seconds after that many failures."""
        # The exponent is limited only to keep the power a finite number.
        return min(self.longest_pause_seconds, self.first_pause_seconds * 2.0 ** min(num_failures - 1, 64))


@dataclass(frozen=True, kw_only=True)
class Clock:
    """What waiting depends on: one for real, another for tests."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    # From the operating system: pauses touch no random stream of the run, and differ between forked processes.
    uniform: Callable[[float, float], float] = random.SystemRandom().uniform


REAL_CLOCK = Clock()


def retry(request: Callable[[], T], *, policy: RetryPolicy, on_retry: Callable[[], None], clock: Clock = REAL_CLOCK) -> T:
    """The result of `request`, called again as long as it raises `TransientError` and `policy` allows.

    `request` must be safe to repeat. `on_retry` is called before every repetition. Raises `GaveUpError`; every other
    exception passes through.
    """
    start = clock.now()
    num_failures = 0
    while True:
        try:
            return request()
        except TransientError as error:
            num_failures += 1
            pause = clock.uniform(0.0, policy.pause_bound(num_failures))
            elapsed = clock.now() - start
            if num_failures >= min(policy.num_tries, error.num_tries or policy.num_tries) or elapsed + pause > policy.total_seconds:
                tries = "1 try" if num_failures == 1 else f"{num_failures} tries"
                raise GaveUpError(f"{tries} in {elapsed:.1f} s failed, the last with {error}") from None
        on_retry()
        clock.sleep(pause)
