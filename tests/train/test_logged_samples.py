"""Logs read back: slices joined in rank order, steps written twice, torn lines, partial ends, memory that does not grow."""

import json
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from vitscale.config import DataError
from vitscale.train.logged_samples import read_logged_steps

Lines = Sequence[tuple[int, list[int]]]


def write_logs(run: Path, ranks: Mapping[int, Lines]) -> Path:
    """A run folder with a file per rank; lines are (step, ids)."""
    (run / "samples").mkdir(parents=True)
    for rank, lines in ranks.items():
        text = "".join(json.dumps({"step": step, "ids": ids, "more": [1]}) + "\n" for step, ids in lines)
        (run / "samples" / f"rank-{rank:05d}.jsonl").write_text(text)
    return run


def read(run: Path, *, global_batch: int) -> dict[int, list[int]]:
    """Ids by step, in the order they are yielded."""
    return {step.step: step.ids.tolist() for step in read_logged_steps(run, global_batch=global_batch)}


def test_slices_of_any_number_of_ranks_make_the_global_batch(tmp_path: Path) -> None:
    two_then_four_then_three = {
        0: [(1, [0, 1]), (2, [4]), (3, [8])],
        1: [(1, [2, 3]), (2, [5]), (3, [9])],
        2: [(2, [6]), (3, [10])],
        10: [(2, [7])],
    }
    run = write_logs(tmp_path / "run", two_then_four_then_three)
    assert read(run, global_batch=3) == {1: [0, 1, 2, 3], 2: [4, 5, 6, 7], 3: [8, 9, 10]}
    ranks = {step.step: step.ranks for step in read_logged_steps(run, global_batch=3)}
    assert ranks == {1: (0, 1), 2: (0, 1, 2, 10), 3: (0, 1, 2)}


def test_the_last_writing_of_a_step_counts(tmp_path: Path) -> None:
    lines = [(1, [1]), (2, [2]), (3, [3]), (2, [20]), (3, [30]), (4, [40]), (3, [300]), (4, [400])]
    assert read(write_logs(tmp_path / "run", {0: lines}), global_batch=1) == {1: [1], 2: [20], 3: [300], 4: [400]}


@pytest.mark.parametrize("torn", ['{"step": 3, "ids": [5, 6', '{"st', '{"step": 3, "ids": [5, 6]'])
def test_the_torn_last_line_of_a_killed_process_is_passed_over(tmp_path: Path, torn: str) -> None:
    run = write_logs(tmp_path / "run", {0: [(1, [1, 2]), (2, [3, 4])]})
    with (run / "samples" / "rank-00000.jsonl").open("a") as file:
        file.write(torn)
    assert read(run, global_batch=2) == {1: [1, 2], 2: [3, 4]}


def test_steps_at_the_end_that_only_some_ranks_reached_are_left_out(tmp_path: Path) -> None:
    run = write_logs(tmp_path / "run", {0: [(1, [0]), (2, [2]), (3, [4])], 1: [(1, [1])]})
    assert read(run, global_batch=2) == {1: [0, 1]}


def test_fewer_ranks_after_a_resume_are_no_partial_end(tmp_path: Path) -> None:
    run = write_logs(tmp_path / "run", {0: [(1, [0]), (2, [2, 3])], 1: [(1, [1])]})
    assert read(run, global_batch=2) == {1: [0, 1], 2: [2, 3]}


def test_a_step_that_lacks_a_rank_in_the_middle_is_shown_as_it_is(tmp_path: Path) -> None:
    run = write_logs(tmp_path / "run", {0: [(1, [0]), (2, [2]), (3, [4])], 1: [(1, [1]), (3, [5])]})
    assert read(run, global_batch=2) == {1: [0, 1], 2: [2], 3: [4, 5]}


def test_a_run_without_a_log_is_told_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no samples are logged here.*data\.log_samples=true"):
        read_logged_steps(tmp_path, global_batch=1)


def test_ids_that_are_no_numbers_name_the_file(tmp_path: Path) -> None:
    run = write_logs(tmp_path / "run", {0: [(1, ["x"])]})  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"rank-00000.jsonl: the line of step 1"):
        read(run, global_batch=1)


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    lines = [(step, list(range(1000, 1100))) for step in range(2000)]
    run = write_logs(tmp_path / "run", {rank: lines for rank in range(3)})
    total = sum(path.stat().st_size for path in (run / "samples").iterdir())
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_logged_steps(run, global_batch=300)) == 2000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**19 < total / 4, (peak, total)
