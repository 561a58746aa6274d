"""Step timing: shares and quantiles of what was counted."""

import pytest

from vitscale.train.clock import timing_of
from vitscale.train.goodput import TimeLedger


class FakeClock:
    """Moves when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_speed_is_that_of_the_steps_alone() -> None:
    clock = FakeClock()
    ledger = TimeLedger(clock=clock)
    ledger.become("step")
    for seconds in (1.0, 2.0, 3.0, 14.0):
        with ledger.spent("data_wait"):
            clock.now += seconds / 4
        clock.now += 3 * seconds / 4
        ledger.step_done()
        with ledger.spent("evaluation"):
            clock.now += 50.0
    timing = timing_of(ledger.take(step=4), images_per_step=100)
    assert timing.images_per_second == pytest.approx(400 / 20)
    assert timing.data_wait_share == pytest.approx(0.25)
    assert timing.step_seconds_p50 == 3.0
    assert timing.step_seconds_p99 == 14.0


def test_no_steps_have_no_speed() -> None:
    timing = timing_of(TimeLedger().take(step=0), images_per_step=100)
    assert (timing.images_per_second, timing.data_wait_share, timing.step_seconds_p50) == (0.0, 0.0, 0.0)
