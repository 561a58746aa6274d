"""Pinned draws (a change of any of them changes every run) and the shape of each distribution."""

import math

import numpy as np
import pytest

from vitscale.dist.seeding import U64_MASK, CounterRng, counter_key, mix, mix_array

NUM_DRAWS = 20_000


def draws(method: str, *args: float) -> np.ndarray:
    rng = CounterRng(7, method)
    return np.array([getattr(rng, method)(*args) for _ in range(NUM_DRAWS)], dtype=np.float64)


def assert_moments(values: np.ndarray, *, mean: float, variance: float) -> None:
    """Mean within five standard errors (the draws are fixed, so this holds always or never), variance within 5 %."""
    assert abs(values.mean() - mean) < 5 * math.sqrt(variance / len(values))
    assert values.var() == pytest.approx(variance, rel=0.05)


def test_splitmix64_against_the_reference_sequence() -> None:
    # The first outputs of Vigna's splitmix64.c for the states 1234567 and 0: state i of the sequence is seed + i * golden.
    golden = 0x9E3779B97F4A7C15
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [mix((1234567 + i * golden) & U64_MASK) for i in range(5)] == expected
    assert mix(0) == 0xE220A8397B1DCDAF


def test_mix_of_an_array_is_mix_of_each() -> None:
    values = [0, 1, 2**63, U64_MASK, 0x9E3779B97F4A7C15, 123456789]
    assert mix_array(np.array(values, dtype=np.uint64)).tolist() == [mix(value) for value in values]


def test_keys_are_pinned() -> None:
    assert counter_key(0, "order") == 14535328599173025945
    assert counter_key(1, 2, "crop") == 3401841475255696996


def test_draws_are_pinned() -> None:
    rng = CounterRng(0, 3, 14, "crop")
    assert [rng.bits(), rng.bits()] == [3039247173056555857, 3258809315303291216]
    assert [rng.uniform(), rng.integer(0, 1000), rng.normal(), rng.gamma(0.3), rng.beta(0.2, 0.2)] == pytest.approx(
        [0.7841272582367611, 206, 0.16133378278488336, 0.004527818012895157, 0.746330162554166], rel=1e-14
    )


def test_every_part_of_a_key_counts() -> None:
    parts = [(1, 2), (2, 1), (12,), (1, "2"), ("1", 2), ("1, 2",), (1, 2, ""), (1,), (-1, 2), ()]
    assert len({counter_key(*part) for part in parts}) == len(parts)


def test_an_integer_counts_by_its_value_whatever_its_type() -> None:
    assert counter_key(np.int64(3), True, "x") == counter_key(3, 1, "x")
    with pytest.raises(TypeError, match="float"):
        counter_key(0.5)  # type: ignore[arg-type]


def test_a_stream_depends_on_its_key_alone() -> None:
    alone = [CounterRng(1, "a").uniform() for _ in range(2)]
    rng, other = CounterRng(1, "a"), CounterRng(1, "b")
    mixed = [(rng.uniform(), other.uniform()) for _ in range(3)]
    assert alone == [mixed[0][0], mixed[0][0]]
    assert all(a != b for a, b in mixed)
    assert len({a for a, _ in mixed}) == 3


def test_uniform() -> None:
    values = draws("uniform", -1.0, 3.0)
    assert values.min() >= -1.0
    assert values.max() < 3.0
    assert_moments(values, mean=1.0, variance=16 / 12)
    counts = np.histogram(values, bins=20, range=(-1, 3))[0]
    assert ((counts - NUM_DRAWS / 20) ** 2 / (NUM_DRAWS / 20)).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001


def test_uniform_never_reaches_its_upper_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CounterRng, "bits", lambda _: U64_MASK)
    assert CounterRng(0).uniform() == 1 - 2**-53
    assert CounterRng(0).integer(0, 7) == 6


def test_integer() -> None:
    values = draws("integer", -2, 5)
    counts = np.unique(values, return_counts=True)
    assert counts[0].tolist() == [-2, -1, 0, 1, 2, 3, 4]
    assert ((counts[1] - NUM_DRAWS / 7) ** 2 / (NUM_DRAWS / 7)).sum() < 22.5  # 6 degrees of freedom, p = 0.001
    with pytest.raises(ValueError, match=r"empty range \[3, 3\)"):
        CounterRng(0).integer(3, 3)


def test_normal() -> None:
    values = draws("normal")
    assert_moments(values, mean=0.0, variance=1.0)
    assert (values**4).mean() == pytest.approx(3.0, rel=0.1)
    assert (np.abs(values) < 1.96).mean() == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("shape", [0.3, 1.0, 4.5])
def test_gamma(shape: float) -> None:
    values = draws("gamma", shape)
    assert values.min() > 0
    assert_moments(values, mean=shape, variance=shape)


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.2), (0.8, 0.8), (1.0, 1.0), (2.0, 5.0)])
def test_beta(a: float, b: float) -> None:
    values = draws("beta", a, b)
    assert values.min() >= 0
    assert values.max() <= 1
    assert_moments(values, mean=a / (a + b), variance=a * b / ((a + b) ** 2 * (a + b + 1)))


def test_beta_of_tiny_parameters_is_still_a_share() -> None:
    values = draws("beta", 1e-4, 1e-4)
    assert np.isfinite(values).all()
    assert ((values >= 0) & (values <= 1)).all()


def test_chance() -> None:
    assert draws("chance", 0.25).mean() == pytest.approx(0.25, abs=0.015)
    assert draws("chance", 0.0).sum() == 0
    assert draws("chance", 1.0).sum() == NUM_DRAWS
