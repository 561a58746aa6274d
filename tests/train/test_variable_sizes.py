"""Whole runs on inputs whose form changes from step to step: exact, resumed bit for bit, evaluated at a named size."""

from pathlib import Path

import pytest
import torch

from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, losses, read_lines, sample_ids, tiny_config
from vitscale import api
from vitscale.config import StopRequested
from vitscale.run_config import RunConfig, problems
from vitscale.train.build import open_run

FLEXIBLE = ["model.flexible_patches=[2, 4, 8]", "model.resampling=flexivit", "parallel.micro_batch=8", "checkpoint.keep=9"]

NAFLEX = [
    "model.patch_size=2",
    "model.pooling=mean",
    "model.resampling=naflex",
    "model.naflex={sequence_lengths: [9, 16], least_share: 0.5}",
    "model.stochastic_depth=0.2",
    "objective.augment={crop: random_resized, scale: [0.5, 1.0], ratio: [0.5, 2.0], flip: true}",
    "parallel.micro_batch=8",
]


def assert_resumes(whole: RunConfig, parts: RunConfig) -> None:
    """A run in one piece, and one that is stopped and goes on."""
    api.train(whole)
    with pytest.raises(StopRequested):
        api.train(parts, stop_at_step=3)
    api.train(parts)
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


def test_sequences_of_patches_resume_bit_for_bit_and_are_evaluated(tmp_path: Path) -> None:
    data = f"kind: classification, path: {tmp_path}/shards, batch_size: 36"
    evals = [f"evals.{name}={{{data}, sequence_length: {length}}}" for name, length in (("long", "16"), ("short", "4"), ("usual", "null"))]
    options = [*NAFLEX, *evals]
    whole = tiny_config(tmp_path, "name=whole", *options)
    assert_resumes(whole, tiny_config(tmp_path, "name=parts", *options))
    long, short, usual = (scores(whole.run_dir, f"eval/{name}/top1") for name in ("long", "short", "usual"))
    assert long == usual != short
    assert scores(whole.run_dir, "eval/short/num_samples") == [96]


def test_sequences_hold_images_of_many_grids_whatever_makes_them(tmp_path: Path) -> None:
    def made(*overrides: str) -> list[dict[str, torch.Tensor]]:
        with open_run(tiny_config(tmp_path, *NAFLEX, *overrides)) as run:
            return [next(run.batches) for _ in range(6)]

    first, again = made("name=first"), made("name=again", "data.num_workers=1")
    assert {tuple(batch["image"].shape) for batch in first} == {(16, 1, 2 * 9, 2), (16, 1, 2 * 16, 2)}
    assert len({tuple(grid) for batch in first for grid in batch["patch_grid"].tolist()}) > 8
    for ours, theirs in zip(first, again, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_patch_size_is_drawn_for_each_step(tmp_path: Path) -> None:
    with open_run(tiny_config(tmp_path, *FLEXIBLE, "data.num_workers=1")) as run:
        assert {next(run.batches)["patch_size"].shape[1:] for _ in range(12)} == {(2, 0), (4, 0), (8, 0)}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evals.a={kind: classification, path: x, patch_size: 4}"], "evals.a.patch_size: 4 has no effect"),
        ([*FLEXIBLE, "evals.a={kind: classification, path: x, patch_size: 3}"], "evals.a.patch_size: 3 does not divide"),
        (
            [*FLEXIBLE, "stages=[{until_samples: 32, image_size: 4}]"],
            "stages.0.image_size: 4 is not a multiple of every patch size",
        ),
        ([*FLEXIBLE, "evals.a={kind: spending, path: x, patch_size: 4}"], "evals.a.patch_size: 4, but what is spent"),
        (["evals.a={kind: classification, path: x, sequence_length: 4}"], "evals.a.sequence_length: 4 is for models with model.naflex"),
        ([*NAFLEX, "evals.a={kind: classification, path: x, patch_size: 4}"], "evals.a.patch_size: 4 has no effect"),
        ([*NAFLEX, "evals.a={kind: classification, path: x, resize: shorter_side}"], "evals.a.resize: shorter_side is for square"),
        ([*NAFLEX, "evals.a={kind: classification, path: x, crop_fraction: 0.9}"], "evals.a.crop_fraction: 0.9 is for square"),
        ([*NAFLEX, "stages=[{until_samples: 32, image_size: 4}]"], "stages: images of model.naflex have no common size"),
        ([*NAFLEX, "objective.erasing={probability: 0.5}"], "objective.erasing: boxes are drawn for square images"),
        ([*NAFLEX, "objective.mixup_alpha=0.2"], "objective.mixup_alpha, objective.cutmix_alpha: images of model.naflex"),
    ],
)
def test_what_contradicts_the_forms_is_said(tmp_path: Path, overrides: list[str], said: str) -> None:
    found = list(problems(tiny_config(tmp_path, *overrides)))
    assert [problem for problem in found if problem.startswith(said)], found
