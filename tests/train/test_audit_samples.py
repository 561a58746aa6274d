"""The comparison of logs: a table of pairs with the verdict, and the first difference named exactly."""

from collections.abc import Sequence

import numpy as np
import pytest

from vitscale.train.audit_samples import compare_samples
from vitscale.train.logged_samples import LoggedStep

Batches = dict[int, Sequence[int]]


def steps(batches: Batches) -> list[LoggedStep]:
    return [LoggedStep(step=step, ids=np.array(ids, np.int64), ranks=(0,)) for step, ids in batches.items()]


BASE: Batches = {1: [1, 2], 2: [3, 4], 3: [5, 6]}

TABLE = {
    "equal": (BASE, "equal", ""),
    "another sample": (BASE | {2: [3, 9]}, "different", "step 2, position 1 of 2 in the global batch: sample 4 in A, 9 in B (1 positions"),
    "another order": (BASE | {3: [6, 5]}, "different", "(2 positions of this step differ, which holds the same samples in another order)"),
    "a step missing": ({1: [1, 2], 3: [5, 6]}, "incomplete", "B logged nothing of step 2, and went on logging later"),
    "nothing in common": ({7: [1, 2]}, "incomplete", "no step in common"),
    "empty": ({}, "incomplete", "no step in common"),
    "a doubled batch": (
        {1: [1, 2], 2: [5, 3, 6, 4]},
        "other_batches",
        "from step 2 on the global batches differ in size, 2 in A and 4 in B; the next 4 samples are the same, in batches of another size",
    ),
    "a doubled batch of others": ({1: [1, 2], 2: [5, 3, 6, 9]}, "different", "of the 4 samples after the next 0 the runs saw others"),
    "sizes that never meet": ({1: [1, 2], 2: [3, 4, 5]}, "different", "the logs end before both have consumed equally many samples"),
}


@pytest.mark.parametrize(("other", "verdict", "detail"), TABLE.values(), ids=TABLE)
def test_verdicts(other: Batches, verdict: str, detail: str) -> None:
    found = compare_samples(steps(BASE), steps(other))
    assert found.verdict == verdict
    assert detail in found.detail
    mirrored = compare_samples(steps(other), steps(BASE))
    assert (mirrored.verdict, mirrored.num_samples) == (verdict, found.num_samples)


def test_what_was_equal_is_counted() -> None:
    found = compare_samples(steps(BASE), steps(BASE | {3: [5, 7]}))
    assert (found.num_steps, found.num_samples, found.first_step, found.last_step) == (2, 4, 1, 2)


def test_a_shorter_run_is_equal_as_far_as_it_goes_and_that_is_said() -> None:
    found = compare_samples(steps(BASE), steps({1: [1, 2]}))
    assert (found.verdict, found.last_step, found.notes) == ("equal", 1, ("A goes on, from step 2, where the other ends",))


def test_a_log_switched_on_later_is_compared_from_there_and_that_is_said() -> None:
    found = compare_samples(steps({2: [3, 4], 3: [5, 6]}), steps(BASE))
    assert (found.verdict, found.first_step, found.num_samples) == ("equal", 2, 4)
    assert found.notes == ("the first step that both runs logged is 2",)


def test_a_step_that_neither_logged_is_not_taken_as_equal() -> None:
    holed = {1: [1, 2], 3: [5, 6]}
    found = compare_samples(steps(holed), steps(holed))
    assert (found.verdict, found.detail) == ("incomplete", "neither run logged step 2, and both went on logging later")


def test_a_stream_in_other_batches_is_compared_to_its_first_other_stretch() -> None:
    single, double = {n: [n] for n in range(1, 9)}, {n: [2 * n, 2 * n - 1] for n in range(1, 5)}
    assert "the next 8 samples are the same" in compare_samples(steps(single), steps(double)).detail
    found = compare_samples(steps(single), steps(double | {4: [8, 9]}))
    assert (found.verdict, found.detail.endswith("of the 2 samples after the next 6 the runs saw others")) == ("different", True)


def test_logs_are_not_read_past_the_first_difference() -> None:
    def endless(*, wrong: int) -> object:
        for step in range(1, 10**9):
            assert step <= 6
            yield LoggedStep(step=step, ids=np.array([step, step if step != wrong else 0]), ranks=(0,))

    assert compare_samples(endless(wrong=-1), endless(wrong=5)).num_steps == 4  # type: ignore[arg-type]
