"""Numbers that go wrong on one rank of a real run: skipped together, or found and named; and what the same command then makes of it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.launcher import run_ranks
from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, events, losses, pack_tiny, read_lines, sample_ids

pytestmark = [pytest.mark.dist, pytest.mark.timeout(400)]

SCRIPT = Path(__file__).with_name("rank_faults.py")
TEN_STEPS = ["train.num_samples=160", "checkpoint.every_steps=2", "train.log_every_steps=2", "checkpoint.keep=9"]
SETTINGS = [(0, "fp32", False), (1, "bf16", False), (2, "fp32", True), (3, "fp32", False)]


def name(kind: str, setting: tuple[int, str, bool]) -> str:
    return f"{kind}-{setting[0]}-{setting[1]}"


def job(kind: str, setting: tuple[int, str, bool], *, poison: list[int] | None = None, flip_after: int | None = None) -> dict[str, Any]:
    stage, precision, offload = setting
    options = [f"parallel.zero_stage={stage}", f"parallel.precision={precision}", f"parallel.offload_optimizer={str(offload).lower()}"]
    watched = ["watch.compare_replicas_every_steps=1"]
    overrides = [f"name={name(kind, setting)}", *TEN_STEPS, *options, *watched]
    return {"overrides": overrides, "poison": poison or [], "flip_after": flip_after}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    """The folder of the runs, and how every attempt ended on rank 0; on rank 1 it did so alike."""
    root = tmp_path_factory.mktemp("faults")
    pack_tiny(root)
    jobs = [job("good", setting) for setting in SETTINGS]
    jobs += [job("skip", setting, poison=[5]) for setting in SETTINGS]
    jobs += [job("flip", setting, flip_after=5) for setting in SETTINGS]
    jobs += [job("flip", setting) for setting in SETTINGS]
    jobs += [job("many", SETTINGS[1], poison=[5, 6, 7, 8]), job("many", SETTINGS[1])]
    ended, on_rank_1 = run_ranks(SCRIPT, root, json.dumps(jobs))
    assert ended == on_rank_1
    attempts: dict[str, list[Any]] = {}
    for one, end in zip(jobs, ended, strict=True):
        attempts.setdefault(one["overrides"][0].removeprefix("name="), []).append(end)
    return root / "runs", attempts


@pytest.mark.parametrize("setting", SETTINGS)
def test_undisturbed_runs_raise_no_alarm(runs: tuple[Path, dict[str, list[Any]]], setting: tuple[int, str, bool]) -> None:
    folder, attempts = runs
    run = folder / name("good", setting)
    assert attempts[run.name] == [[0, ""]]
    assert events(run, "skipped_step") == events(run, "corruption") == []


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_nan_on_one_rank_skips_that_step_on_all(runs: tuple[Path, dict[str, list[Any]]], setting: tuple[int, str, bool]) -> None:
    folder, attempts = runs
    run, good = folder / name("skip", setting), folder / name("good", setting)
    assert attempts[run.name] == [[0, ""]]
    (event,) = events(run, "skipped_step")
    assert event["step"] == 5
    assert event["sample_ids"] == sample_ids(run)[5]
    assert sample_ids(run) == sample_ids(good), "the samples of the skipped step are used up"
    for step in (2, 4):
        assert losses(run)[step] == losses(good)[step]
    for record in read_lines(run / "metrics.jsonl"):
        assert all(math.isfinite(value) for value in record.values() if isinstance(value, float))
    after, before = checkpoint_tensors(run, step=6), checkpoint_tensors(run, step=4)
    assert not all((after[key] == before[key]).all() for key in after), "step 6 was taken"
    assert losses(run)[10] != losses(good)[10]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_flipped_bit_ends_the_run_and_the_same_command_makes_it_whole(
    runs: tuple[Path, dict[str, list[Any]]], setting: tuple[int, str, bool]
) -> None:
    folder, attempts = runs
    run, good = folder / name("flip", setting), folder / name("good", setting)
    (code, message), again = attempts[run.name]
    assert code == 20
    # Two copies and no master: nothing tells which is right.
    ranks = [0, 1] if setting[0] == 0 else [1]
    assert ("ranks 0, 1 differ" if setting[0] == 0 else "the copy on rank 1 is wrong") in message
    assert "step-00000004" in message
    (event,) = events(run, "corruption")
    assert (event["step"], event["ranks"]) == (5, ranks)
    assert again == [0, ""]
    assert_equal_tensors(checkpoint_tensors(run, step=10), checkpoint_tensors(good, step=10))


def test_too_many_skipped_steps_end_the_run(runs: tuple[Path, dict[str, list[Any]]]) -> None:
    folder, attempts = runs
    run = folder / name("many", SETTINGS[1])
    (code, message), again = attempts[run.name]
    assert code == 20
    assert message.startswith("step 8: the gradient is not finite, in the last of 4 steps in a row; watch.max_skipped_steps allows 3")
    assert "step-00000006" in message
    assert ", ".join(str(i) for i in sample_ids(run)[8]) in message
    assert again == [0, ""]
    assert_equal_tensors(checkpoint_tensors(run, step=4), checkpoint_tensors(run, step=6))
