"""Running shards: every one once, in whatever order, with progress; jobs are made only as they are needed."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.data_tools.test_shard_writer import blanks, job_in
from vitscale_data_tools.processes import Runner, write_shards
from vitscale_data_tools.shard_writer import ShardJob

NUM_SHARDS = 9


@pytest.fixture(params=[1, 2])
def run(request: pytest.FixtureRequest) -> Runner:
    return partial(write_shards, workers=request.param)


def test_every_shard_once_and_all_samples_told(tmp_path: Path, run: Runner) -> None:
    made = 0

    def jobs() -> Iterator[ShardJob]:
        nonlocal made
        for number in range(NUM_SHARDS):
            made += 1
            yield job_in(tmp_path / str(number), blanks(1, 2, 3))

    told: list[int] = []
    results = run(jobs(), told.append)
    first = next(results)
    assert made < NUM_SHARDS
    assert len([first, *results]) == made == NUM_SHARDS
    assert sum(told) == 3 * NUM_SHARDS
    assert all((tmp_path / str(number) / "contents" / first.name).is_file() for number in range(NUM_SHARDS))


def test_an_error_of_the_disk_reaches_the_caller(tmp_path: Path, run: Runner) -> None:
    job = job_in(tmp_path, blanks(1))
    (tmp_path / "scratch").rmdir()
    with pytest.raises(FileNotFoundError):
        list(run(iter([job]), lambda _: None))


def test_no_jobs_no_results(run: Runner) -> None:
    assert list(run(iter([]), lambda _: None)) == []
