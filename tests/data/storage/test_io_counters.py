"""Counts of a storage: threads, forks and pickles."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.data.forked import exit_code_of_fork
from vitscale.data.storage.io_counters import IoCounters, IoMeter


def test_counts_add_up() -> None:
    counters = IoCounters("reads", "retries")
    counters.add(reads=2)
    counters.add(reads=1, retries=4)
    assert counters.values() == {"reads": 3, "retries": 4}


def test_an_unknown_count_is_our_mistake() -> None:
    with pytest.raises(KeyError):
        IoCounters("reads").add(raeds=1)


def test_threads_lose_no_count() -> None:
    counters = IoCounters("reads")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: counters.add(reads=1), range(5000)))
    finally:
        sys.setswitchinterval(interval)
    assert counters.values() == {"reads": 5000}


def test_a_fork_counts_even_if_the_lock_was_held() -> None:
    counters = IoCounters("reads")

    def work() -> None:
        counters.add(reads=1)
        assert counters.values() == {"reads": 1}

    with counters._lock:
        assert exit_code_of_fork(work) == 0


def test_a_pickle_starts_anew() -> None:
    counters = IoCounters("reads", "retries")
    counters.add(reads=1)
    assert pickle.loads(pickle.dumps(counters)).values() == {"reads": 0, "retries": 0}


def test_a_meter_tells_what_was_added_since_it_was_asked() -> None:
    counters = IoCounters("reads", "retries")
    counters.add(reads=5)
    meter = IoMeter(counters.values)
    assert meter.since_last() == {"reads": 5}
    assert meter.since_last() == {}
    counters.add(reads=2, retries=1)
    assert meter.since_last() == {"reads": 2, "retries": 1}
