"""The interval between saves: Daly's formula against a simulation, and Young's optimum against a search."""

import random

import pytest

from vitscale.train.checkpoint_interval import FailureModel


def simulated_share(model: FailureModel, *, interval: float, num_intervals: int, seed: int) -> float:
    """Do intervals of work with a save each, failing at random; every failure costs a restart, which may fail as well."""
    rng = random.Random(seed)
    now = 0.0
    for _ in range(num_intervals):
        needed = interval + model.save_stall_seconds
        while (failure := rng.expovariate(1 / model.mean_seconds_between_failures)) < needed:
            now += failure
            while (failure := rng.expovariate(1 / model.mean_seconds_between_failures)) < model.restart_seconds:
                now += failure
            now += model.restart_seconds
        now += needed
    return num_intervals * interval / now


@pytest.mark.parametrize(("stall", "between", "restart", "interval"), [(2, 120, 10, 30), (1, 10_000, 60, 600), (5, 60, 20, 100)])
def test_the_expected_share_is_that_of_a_simulation(stall: float, between: float, restart: float, interval: float) -> None:
    model = FailureModel(save_stall_seconds=stall, mean_seconds_between_failures=between, restart_seconds=restart)
    # Daly lets a failure under way of a restart cost less than a whole one; the difference is of second order in restart / between.
    tolerance = 0.01 + (restart / between) ** 2
    assert simulated_share(model, interval=interval, num_intervals=20_000, seed=1) == pytest.approx(
        model.useful_share(interval), rel=tolerance
    )


def test_the_best_interval_is_where_the_share_is_greatest() -> None:
    model = FailureModel(save_stall_seconds=1.0, mean_seconds_between_failures=10_000.0, restart_seconds=30.0)
    assert model.best_interval_seconds == pytest.approx(20_000**0.5)
    best = max(range(10, 1000), key=model.useful_share)
    assert best == pytest.approx(model.best_interval_seconds, rel=0.03)


def test_what_never_ends_is_worth_nothing() -> None:
    model = FailureModel(save_stall_seconds=1.0, mean_seconds_between_failures=1.0, restart_seconds=0.0)
    assert model.useful_share(10_000.0) == 0.0
    assert model.useful_share(0.0) == 0.0
