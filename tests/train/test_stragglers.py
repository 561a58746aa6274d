"""Slow ranks are named, by tables of windows; noise names nobody."""

import random
from collections.abc import Sequence
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.train.goodput import HostSeconds
from vitscale.train.stragglers import Straggler, StragglerWatch, compare, own_seconds, straggler_message

Windows = Sequence[Sequence[float | None]]


def named(windows: Windows, *, factor: float = 2.0) -> list[list[int]]:
    """The ranks named after each window."""
    watch = StragglerWatch(factor=factor)
    return [[straggler.rank for straggler in watch.judge(window).slow] for window in windows]


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([[1.0, 10.0]], [[1]]),
        ([[1.0, 1.0, 1.0, 12.0]], [[3]]),
        ([[1.0, 2.5], [1.0, 2.5], [1.0, 2.5]], [[], [1], []]),
        ([[1.0, 2.5], [1.0, 1.0], [1.0, 2.5]], [[], [], []]),
        ([[3.0, 1.0], [1.0, 3.0], [3.0, 1.0]], [[], [], []]),
        ([[1.0, 1.9], [1.0, 1.9]], [[], []]),
        ([[0.005, 0.05], [0.005, 0.05]], [[], []]),
        ([[0.0, 1.0]], [[1]]),
        ([[1.0, None], [1.0, None]], [[], []]),
        ([[1.0, None, 9.0]], [[2]]),
        ([[1.0]], [[]]),
        ([[9.0, 9.0, 1.0, 1.0, 1.0]], [[0, 1]]),
    ],
)
def test_who_is_named(windows: Windows, expected: list[list[int]]) -> None:
    assert named(windows) == expected


def test_a_higher_factor_also_asks_more_of_a_single_window() -> None:
    assert named([[1.0, 7.0], [1.0, 7.0]], factor=8.0) == [[], []]
    assert named([[1.0, 9.0]], factor=8.0) == [[1]]


def test_a_rank_is_named_again_only_after_it_has_recovered() -> None:
    watch = StragglerWatch(factor=2.0)
    ranks = []
    for slow in (8.0, 8.0, 1.0, 8.0, 1.0, 1.0, 8.0):
        found = watch.judge([1.0, slow])
        ranks.append(([s.rank for s in found.slow], [s.rank for s in found.recovered]))
    assert ranks == [([1], []), ([], []), ([], []), ([], []), ([], []), ([], [1]), ([1], [])]


def test_each_rank_is_compared_with_the_others() -> None:
    assert compare({0: 1.0, 1: 1.5, 4: 1.2}) == [
        Straggler(rank=0, seconds=1.0, others_seconds=1.35),
        Straggler(rank=1, seconds=1.5, others_seconds=1.1),
        Straggler(rank=4, seconds=1.2, others_seconds=1.25),
    ]
    assert compare({0: 1.0}) == []


@given(st.lists(st.floats(0.0, 100.0), min_size=2, max_size=9))
def test_a_rank_is_compared_with_the_median_of_the_others(seconds: list[float]) -> None:
    for compared in compare(dict(enumerate(seconds))):
        assert compared.others_seconds == median(seconds[: compared.rank] + seconds[compared.rank + 1 :])


def test_noise_of_a_third_names_nobody() -> None:
    draw = random.Random(0)
    windows = [[draw.uniform(1.0, 1.33) for _ in range(8)] for _ in range(2000)]
    assert not any(named(windows))


@pytest.mark.parametrize(
    ("device", "forward", "expected"),
    [("cpu", None, 6.0), ("cuda", 3.0, 4.0), ("cuda", None, None)],
)
def test_own_work(device: str, forward: float | None, expected: float | None) -> None:
    host = HostSeconds(steps=10.0, collectives=4.0, data_wait=1.0)
    assert own_seconds(host, device=device, forward_seconds=forward) == expected


def test_messages() -> None:
    straggler = Straggler(rank=1, seconds=10.0, others_seconds=2.0)
    slow = straggler_message(straggler, hosts=["a", "b"], is_slow=True)
    assert slow.startswith("rank 1 on b is slow: its own work, data included, took 10.00 s since the last report, 5.0 times the 2.00 s")
    assert straggler_message(straggler, hosts=["a", "b"], is_slow=False) == "rank 1 on b is as fast as the others again"
