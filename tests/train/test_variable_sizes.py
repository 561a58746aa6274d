"""Whole runs on inputs whose form changes from step to step: exact, resumed bit for bit, evaluated at a named size."""

from pathlib import Path

import pytest

from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, losses, read_lines, sample_ids, tiny_config
from vitscale import api
from vitscale.config import StopRequested
from vitscale.run_config import RunConfig, problems
from vitscale.train.build import open_run

FLEXIBLE = ["model.flexible_patches=[2, 4, 8]", "model.resampling=flexivit", "parallel.micro_batch=8", "checkpoint.keep=9"]


def assert_resumes(whole: RunConfig, parts: RunConfig) -> None:
    """A run in one piece, and one that is stopped and goes on with two loader processes."""
    api.train(whole)
    with pytest.raises(StopRequested):
        api.train(parts, stop_at_step=3)
    api.train(parts.model_copy(update={"data": parts.data.model_copy(update={"num_workers": 2})}))
    assert sample_ids(parts.run_dir) == sample_ids(whole.run_dir)
    assert losses(parts.run_dir) == losses(whole.run_dir)
    assert_equal_tensors(checkpoint_tensors(parts.run_dir, step=6), checkpoint_tensors(whole.run_dir, step=6))


def scores(run_dir: Path, key: str) -> list[float]:
    return [record[key] for record in read_lines(run_dir / "metrics.jsonl") if key in record]


def test_flexible_patches_resume_bit_for_bit_and_are_evaluated_at_a_named_size(tmp_path: Path) -> None:
    data = f"kind: classification, path: {tmp_path}/shards"
    evals = [f"evals.{name}={{{data}, patch_size: {size}}}" for name, size in (("fine", "2"), ("coarse", "8"), ("usual", "null"))]
    options = [*FLEXIBLE, *evals]
    whole = tiny_config(tmp_path, "name=whole", *options)
    assert_resumes(whole, tiny_config(tmp_path, "name=parts", *options))
    fine, coarse, usual = (scores(whole.run_dir, f"eval/{name}/top1") for name in ("fine", "coarse", "usual"))
    assert fine == usual != coarse
    assert scores(whole.run_dir, "eval/fine/num_samples") == [96]


def test_the_patch_size_of_each_step_is_a_function_of_seed_and_samples(tmp_path: Path) -> None:
    def drawn(*overrides: str) -> list[int]:
        with open_run(tiny_config(tmp_path, *FLEXIBLE, *overrides)) as run:
            return [next(run.batches)["patch_size"].shape[1] for _ in range(12)]

    first = drawn("name=first", "seed=1")
    assert set(first) == {2, 4, 8}
    assert drawn("name=workers", "seed=1", "data.num_workers=1") == first
    assert drawn("name=seed", "seed=2") != first


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evals.a={kind: classification, path: x, patch_size: 4}"], "evals.a.patch_size: 4 has no effect"),
        ([*FLEXIBLE, "evals.a={kind: classification, path: x, patch_size: 3}"], "evals.a.patch_size: 3 does not divide"),
        (
            [*FLEXIBLE, "stages=[{until_samples: 32, image_size: 4}]"],
            "stages.0.image_size: 4 is not a multiple of every patch size",
        ),
    ],
)
def test_what_contradicts_the_forms_is_said(tmp_path: Path, overrides: list[str], said: str) -> None:
    found = list(problems(tiny_config(tmp_path, *overrides)))
    assert [problem for problem in found if problem.startswith(said)], found
