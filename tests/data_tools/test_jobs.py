"""Results in the jobs' order, one count of all progress, and errors that keep their kind, in one process or several."""

import os
from collections.abc import Iterator

import pytest

from vitscale.config import DataError
from vitscale_data_tools.jobs import Advance, default_workers, results_as_done, run_jobs


def square(job: int, advance: Advance) -> int:
    advance(job)
    return job * job


def fail_at_three(job: int, advance: Advance) -> int:
    if job == 3:
        raise DataError("three")
    return square(job, advance)


def die(job: int, _: Advance) -> int:
    if job == 1:
        os._exit(9)
    return job


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.dist)])
def test_results_in_order_and_progress_to_the_end(workers: int) -> None:
    seen: list[int] = []
    assert run_jobs(square, list(range(8)), workers=workers, report=seen.append) == [job * job for job in range(8)]
    assert seen == sorted(seen)
    assert seen[-1] == sum(range(8))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.dist)])
def test_an_error_of_a_task_is_raised_as_it_is(workers: int) -> None:
    with pytest.raises(DataError, match=r"^three$"):
        run_jobs(fail_at_three, list(range(6)), workers=workers)


@pytest.mark.dist
def test_a_killed_process_is_one_paragraph() -> None:
    with pytest.raises(DataError, match="a working process was killed"):
        run_jobs(die, list(range(4)), workers=2)


class Heavy:
    """A task that may be pickled once for each process, and not once for each job."""

    def __call__(self, job: int, _: Advance) -> int:
        return job

    def __reduce__(self) -> tuple[type["Heavy"], tuple[()]]:
        pickled.append(1)
        return Heavy, ()


pickled: list[int] = []


@pytest.mark.dist
def test_what_all_jobs_share_travels_once_and_jobs_when_their_turn_comes() -> None:
    pickled.clear()
    made = 0

    def jobs() -> Iterator[int]:
        nonlocal made
        for number in range(40):
            made += 1
            yield number

    results = results_as_done(Heavy(), jobs(), workers=2, advance=lambda _: None)
    next(results)
    assert made <= 4, "of millions of jobs few are in memory"
    assert len(list(results)) == 39
    assert len(pickled) <= 2


def test_no_jobs() -> None:
    assert run_jobs(square, [], workers=4) == []


@pytest.mark.parametrize(("num_bytes", "at_most"), [(0, 1), (1 << 28, 1), (3 << 28, 3), (1 << 50, 16)])
def test_small_work_is_done_in_one_process(num_bytes: int, at_most: int) -> None:
    assert 1 <= default_workers(num_bytes) <= at_most
