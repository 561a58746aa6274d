"""Runs a task over many jobs, in this process or in several, with one count of what is done."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import islice
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeVar

from vitscale.config import DataError
from vitscale.data.orphans import end_with_parent

_POLL_SECONDS = 0.1
_JOBS_PER_WORKER = 2
"""Handed over and not done: enough that no process waits, few enough that millions of jobs are never all in memory."""
_MOST_PROCESSES = 16
_BYTES_PER_PROCESS = 1 << 28

Job = TypeVar("Job")
Result = TypeVar("Result")
Advance = Callable[[int], None]
"""Called with how much more is done."""
Task = Callable[[Job, Advance], Result]


def default_workers(num_bytes: int) -> int:
    """One process per core, but none that takes longer to start than to do its share."""
    return max(1, min(_MOST_PROCESSES, len(os.sched_getaffinity(0)), num_bytes // _BYTES_PER_PROCESS))


def run_jobs(task: Task[Job, Result], jobs: Sequence[Job], *, workers: int, report: Callable[[int], None] | None = None) -> list[Result]:
    """`task(job, advance)` for every job, results in the order of `jobs`; `report` gets the sum of all advances now and then.

    Raises what `results_as_done` raises.
    """
    return in_order(results_as_done(task, jobs, workers=min(workers, len(jobs)), advance=Total(report)))


def in_order(done: Generator[tuple[int, Result], None, None]) -> list[Result]:
    """All results in the order of their jobs; the work ends with it, done or not."""
    with closing(done):
        return [result for _, result in sorted(done, key=lambda numbered: numbered[0])]


def results_as_done(
    task: Task[Job, Result], jobs: Iterable[Job], *, workers: int, advance: Advance
) -> Generator[tuple[int, Result], None, None]:
    """The number of each job and its result, as they are done; closing it ends the work. The first exception of a task is raised.

    With several processes task, jobs and results are pickled: the task once for each process, so that it may hold what all
    jobs share, and a job when its turn comes. The processes are started afresh. Raises `DataError` when one is killed.
    """
    if workers <= 1:
        for number, job in enumerate(jobs):
            yield number, task(job, advance)
        return
    # Not forked: the progress bar runs a thread, and a fork copies its locks in whatever state they are.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("Q", 0)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(counter, task))
    try:
        yield from _from_pool(enumerate(jobs), pool=pool, limit=_JOBS_PER_WORKER * workers, told=_Told(counter, advance))
    except BrokenProcessPool:
        raise DataError(
            "a working process was killed, perhaps for want of memory. Run the command again, with fewer --workers: it goes on from"
            " what is done."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


class Total:
    """Sums up what is done and reports the sum."""

    def __init__(self, report: Callable[[int], None] | None) -> None:
        self._report = report
        self._num_done = 0

    def __call__(self, count: int) -> None:
        self._num_done += count
        if self._report is not None:
            self._report(self._num_done)


def _from_pool(jobs: Iterator[tuple[int, Any]], *, pool: ProcessPoolExecutor, limit: int, told: "_Told") -> Iterator[tuple[int, Any]]:
    waiting: dict[Future[Any], int] = {}
    while True:
        for number, job in islice(jobs, limit - len(waiting)):
            waiting[pool.submit(_run_in_worker, job)] = number
        if not waiting:
            return
        done, _ = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        told.tell()
        for future in done:
            yield waiting.pop(future), future.result()


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


_shared_counter: "Synchronized[int] | None" = None
_shared_task: Task[Any, Any] | None = None


def _start_worker(counter: "Synchronized[int]", task: Task[Any, Any]) -> None:
    global _shared_counter, _shared_task
    _shared_counter, _shared_task = counter, task
    end_with_parent()  # else a process waits for ever for the next job of a killed command
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the pool in order


def _run_in_worker(job: Any) -> Any:
    assert _shared_task is not None
    return _shared_task(job, _advance_shared)


def _advance_shared(count: int) -> None:
    assert _shared_counter is not None
    with _shared_counter.get_lock():
        _shared_counter.value += count
