"""Repeated requests: what is absorbed, what is not, and that pauses and tries stay inside their bounds."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.data.storage.retry import Clock, GaveUpError, RetryPolicy, TransientError, retry


@dataclass
class _FakeTime:
    """A clock that only pauses and requests move."""

    seconds: float = 0.0
    pauses: list[float] = field(default_factory=list)
    jitter: random.Random = field(default_factory=lambda: random.Random(0))

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.seconds += seconds

    def clock(self) -> Clock:
        return Clock(now=lambda: self.seconds, sleep=self.sleep, uniform=self.jitter.uniform)


@dataclass
class _Flaky:
    """A request that fails a number of times and takes some of the fake time."""

    failures: int
    time: _FakeTime
    request_seconds: float = 0.0
    calls: int = 0
    retries: int = 0

    def __call__(self) -> str:
        self.calls += 1
        self.time.seconds += self.request_seconds
        if self.calls <= self.failures:
            raise TransientError(f"failure {self.calls}")
        return "done"

    def count(self) -> None:
        self.retries += 1


@given(failures=st.integers(0, 13), seed=st.integers(0, 2**32))
def test_any_number_of_failures_below_the_tries_is_absorbed_and_counted(failures: int, seed: int) -> None:
    time = _FakeTime(jitter=random.Random(seed))
    request = _Flaky(failures, time)
    assert retry(request, policy=RetryPolicy(), on_retry=request.count, clock=time.clock()) == "done"
    assert (request.calls, request.retries, len(time.pauses)) == (failures + 1, failures, failures)
    assert all(pause <= RetryPolicy().pause_bound(i) for i, pause in enumerate(time.pauses, start=1))


def test_nine_failures_never_take_longer_than_eight_seconds() -> None:
    assert sum(RetryPolicy().pause_bound(i) for i in range(1, 10)) < 8.0


def test_pauses_double_up_to_the_longest() -> None:
    bounds = [RetryPolicy(first_pause_seconds=0.5, longest_pause_seconds=3.0).pause_bound(i) for i in (1, 2, 3, 4, 5, 5000)]
    assert bounds == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]


def test_pauses_are_spread_over_their_whole_range() -> None:
    first_pauses = []
    for seed in range(500):
        time = _FakeTime(jitter=random.Random(seed))
        retry(_Flaky(1, time), policy=RetryPolicy(), on_retry=lambda: None, clock=time.clock())
        first_pauses += time.pauses
    quarters = [sum(i <= pause / 0.015 * 4 < i + 1 for pause in first_pauses) for i in range(4)]
    assert min(quarters) > 80


def test_the_tries_are_bounded() -> None:
    time = _FakeTime()
    request = _Flaky(99, time)
    with pytest.raises(GaveUpError, match=r"5 tries in \d+\.\d s failed, the last with failure 5"):
        retry(request, policy=RetryPolicy(num_tries=5), on_retry=request.count, clock=time.clock())
    assert (request.calls, request.retries) == (5, 4)


@given(request_seconds=st.floats(0.1, 40), total=st.floats(1, 100), seed=st.integers(0, 2**32))
def test_the_time_is_bounded(request_seconds: float, total: float, seed: int) -> None:
    time = _FakeTime(jitter=random.Random(seed))
    request = _Flaky(10**6, time, request_seconds=request_seconds)
    with pytest.raises(GaveUpError):
        retry(request, policy=RetryPolicy(num_tries=10**6, total_seconds=total), on_retry=request.count, clock=time.clock())
    assert time.seconds <= total + 2 * request_seconds


def test_other_errors_pass_at_once() -> None:
    def refused() -> None:
        raise PermissionError

    time = _FakeTime()
    with pytest.raises(PermissionError):
        retry(refused, policy=RetryPolicy(), on_retry=lambda: None, clock=time.clock())
    assert time.pauses == []


def test_the_run_s_random_streams_are_untouched() -> None:
    random.seed(7)
    expected = random.Random(7).random()
    time = _FakeTime()
    retry(_Flaky(3, time), policy=RetryPolicy(), on_retry=lambda: None, clock=Clock(now=lambda: 0.0, sleep=time.sleep))
    assert random.random() == expected


def test_a_kind_of_failure_may_have_fewer_tries() -> None:
    calls = []

    def request() -> None:
        calls.append(None)
        raise TransientError("no answer", num_tries=3)

    time = _FakeTime()
    with pytest.raises(GaveUpError, match="3 tries"):
        retry(request, policy=RetryPolicy(), on_retry=lambda: None, clock=time.clock())
    assert len(calls) == 3
