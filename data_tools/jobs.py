"""Runs a task over many jobs, in this process or in several, with one count of what is done and the results in order."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

from vitscale.config import DataError
from vitscale.data.orphans import end_with_parent

_POLL_SECONDS = 0.1
_MOST_PROCESSES = 16
_BYTES_PER_PROCESS = 1 << 28

Job = TypeVar("Job")
Result = TypeVar("Result")
Advance = Callable[[int], None]
"""Called by a task with how much more of it is done."""


def default_workers(num_bytes: int) -> int:
    """One process per core, but none that takes longer to start than to do its share."""
    return max(1, min(_MOST_PROCESSES, len(os.sched_getaffinity(0)), num_bytes // _BYTES_PER_PROCESS))


def run_jobs(
    task: Callable[[Job, Advance], Result], jobs: Sequence[Job], *, workers: int, report: Callable[[int], None] | None = None
) -> list[Result]:
    """`task(job, advance)` for every job, results in the order of `jobs`; the first exception of a task is raised.

    `report` gets the sum of all advances now and then. With several processes task and jobs are pickled, and the processes
    are started afresh. Raises `DataError` when one of them is killed.
    """
    report = report or (lambda _: None)
    if workers == 1 or len(jobs) <= 1:
        return _run_here(task, jobs, report=report)
    # Not forked: the progress bar runs a thread, and a fork copies its locks in whatever state they are.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("Q", 0)
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_start_worker, initargs=(counter,))
    try:
        futures = [pool.submit(_run_in_worker, task, job) for job in jobs]
        _watch(futures, counter=counter, report=report)
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise DataError("a working process was killed, perhaps for want of memory. Run the command again with fewer --workers.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _run_here(task: Callable[[Job, Advance], Result], jobs: Sequence[Job], *, report: Callable[[int], None]) -> list[Result]:
    num_done = 0

    def advance(count: int) -> None:
        nonlocal num_done
        num_done += count
        report(num_done)

    return [task(job, advance) for job in jobs]


def _watch(futures: Sequence["Future[Result]"], *, counter: "Synchronized[int]", report: Callable[[int], None]) -> None:
    """Report until all are done or one has failed."""
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_EXCEPTION)
        report(counter.value)
        if any(future.exception() for future in done):
            return


_shared_counter: "Synchronized[int] | None" = None


def _start_worker(counter: "Synchronized[int]") -> None:
    global _shared_counter
    _shared_counter = counter
    end_with_parent()  # else a process waits for ever for the next job of a killed command
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the pool in order


def _run_in_worker(task: Callable[[Job, Advance], Result], job: Job) -> Result:
    return task(job, _advance_shared)


def _advance_shared(count: int) -> None:
    assert _shared_counter is not None
    with _shared_counter.get_lock():
        _shared_counter.value += count
