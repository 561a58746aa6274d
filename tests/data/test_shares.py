import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.data.shares import cycle_slots


@pytest.mark.parametrize(
    ("weights", "slots"),
    [
        ({"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 70, "b": 20, "c": 10}),
        ({"a": 7, "b": 2, "c": 1}, {"a": 70, "b": 20, "c": 10}),
        ({"a": 1, "b": 1, "c": 1}, {"a": 34, "b": 34, "c": 34}),
        ({"a": 0.3, "b": 0.4}, {"a": 45, "b": 60}),
        ({"a": 0.125, "b": 0.875}, {"a": 13, "b": 91}),
        ({"a": 0.999, "b": 0.001}, {"a": 999, "b": 1}),
        ({"a": 0.33333, "b": 0.66667}, {"a": 333, "b": 667}),
        ({"a": 1.0005, "b": 1.0005, "c": 997.999}, {"a": 1, "b": 1, "c": 998}),
    ],
)
def test_shares_as_slots(weights: dict[str, float], slots: dict[str, int]) -> None:
    assert cycle_slots(weights) == slots


@given(st.lists(st.integers(1, 50), min_size=2, max_size=6))
def test_whole_weights_with_a_short_cycle_are_exact(weights: list[int]) -> None:
    slots = list(cycle_slots({str(i): weight for i, weight in enumerate(weights)}).values())
    assert all(a * sum(weights) == b * sum(slots) for a, b in zip(slots, weights, strict=True))
    assert 100 <= sum(slots) <= 1000


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6))
def test_any_weights_come_out_within_a_thousandth(weights: list[float]) -> None:
    slots = list(cycle_slots({str(i): weight for i, weight in enumerate(weights)}).values())
    assert sum(slots) <= 1000
    assert all(abs(a / sum(slots) - b / sum(weights)) < 0.001 for a, b in zip(slots, weights, strict=True))


def test_a_share_that_would_never_be_drawn_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^rare: its share of 0\.0003 is less than 1/1000"):
        cycle_slots({"common": 0.9997, "rare": 0.0003})
