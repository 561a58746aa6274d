"""Step timing: shares and quantiles of what was measured, forgotten once collected."""

import time

import pytest

from vitscale.train.clock import HostSeconds, StepClock


def test_waiting_is_a_share_of_the_step_time() -> None:
    clock = StepClock()
    for _ in range(4):
        with clock.waiting_for_data():
            time.sleep(0.01)
        time.sleep(0.01)
        clock.step_done()
    timing = clock.collect(images_per_step=100)
    assert 0.3 < timing.data_wait_share < 0.7
    assert timing.images_per_second == pytest.approx(100 / timing.step_seconds_p50, rel=0.5)
    assert timing.step_seconds_p50 <= timing.step_seconds_p99


def test_what_is_skipped_is_not_counted() -> None:
    clock = StepClock()
    time.sleep(0.05)
    clock.skip()
    clock.step_done()
    assert clock.collect(images_per_step=1).step_seconds_p99 < 0.04


def test_collect_forgets() -> None:
    clock = StepClock()
    clock.step_done()
    clock.collect(images_per_step=1)
    assert clock.collect(images_per_step=1).images_per_second == 0.0


def test_collectives_of_the_steps_are_counted_and_others_are_not() -> None:
    seconds = [0.0]
    clock = StepClock(collective_seconds=lambda: seconds[0])
    for within, between in ((1.0, 10.0), (2.0, 20.0)):
        with clock.waiting_for_data():
            time.sleep(0.01)
        seconds[0] += within
        clock.step_done()
        seconds[0] += between
        clock.skip()
    spent = clock.host_seconds
    assert spent.collectives == 3.0
    assert 0.02 <= spent.data_wait < spent.steps < 0.5
    clock.collect(images_per_step=1)
    assert clock.host_seconds == HostSeconds(steps=0.0, collectives=0.0, data_wait=0.0)
