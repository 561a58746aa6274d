"""Writes shards in this process or in several on this machine."""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized

from vitscale.config import DataError
from vitscale.data.orphans import end_with_parent

from .shard_writer import ShardJob, ShardResult, write_shard

Advance = Callable[[int], None]
"""Called now and then with the number of samples done since the last call."""

Results = Generator[ShardResult, None, None]

Runner = Callable[[Iterable[ShardJob], Advance], Results]
"""Writes all shards, in any order, and gives their results as they are done. Closing it ends the writing."""

_POLL_SECONDS = 0.1
_COUNT_EVERY = 64
_JOBS_PER_WORKER = 2
"""Handed over and not done: enough that no process waits, few enough that not all of a large plan is copied at once."""


def run_here(jobs: Iterable[ShardJob], advance: Advance) -> Results:
    """One shard after the other, in this process."""
    for job in jobs:
        counted = _Counted(advance)
        result = write_shard(job, advance=counted)
        counted.flush()
        yield result


def run_in_processes(jobs: Iterable[ShardJob], advance: Advance, *, workers: int) -> Results:
    """In `workers` processes. Raises `DataError` when one of them is killed."""
    # Not forked: the progress bar runs a thread, and a fork copies its locks in whatever state they are.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("Q", 0)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(counter,))
    try:
        yield from _in_pool(iter(jobs), pool=pool, limit=_JOBS_PER_WORKER * workers, told=_Told(counter, advance))
    except BrokenProcessPool:
        raise DataError(
            "a packing process was killed, perhaps for want of memory. Run the command again, with fewer --workers: it goes on from"
            " the shards that are whole."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _in_pool(jobs: Iterator[ShardJob], *, pool: ProcessPoolExecutor, limit: int, told: "_Told") -> Results:
    waiting: set[Future[ShardResult]] = set()
    has_more = True
    while waiting or has_more:
        while has_more and len(waiting) < limit:
            job = next(jobs, None)
            has_more = job is not None
            if job is not None:
                waiting.add(pool.submit(_run_in_worker, job))
        done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        told.tell()
        for future in done:
            yield future.result()


class _Told:
    """Passes on what the processes have counted since the last time."""

    def __init__(self, counter: "Synchronized[int]", advance: Advance) -> None:
        self._counter = counter
        self._advance = advance
        self._told = 0

    def tell(self) -> None:
        value = self._counter.value
        if value > self._told:
            self._advance(value - self._told)
            self._told = value


class _Counted:
    """Gathers single samples, as passing on each would cost more than packing a small one."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._pending = 0

    def __call__(self, count: int) -> None:
        self._pending += count
        if self._pending >= _COUNT_EVERY:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            self._advance(self._pending)
            self._pending = 0


_shared_counter: "Synchronized[int] | None" = None


def _start_worker(counter: "Synchronized[int]") -> None:
    global _shared_counter
    _shared_counter = counter
    end_with_parent()  # else a process waits for ever for the next shard of a killed command
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the pool in order


def _run_in_worker(job: ShardJob) -> ShardResult:
    counted = _Counted(_add_to_shared_counter)
    result = write_shard(job, advance=counted)
    counted.flush()
    return result


def _add_to_shared_counter(count: int) -> None:
    counter = _shared_counter
    assert counter is not None
    with counter.get_lock():
        counter.value += count
