"""Inputs of variable size on real process groups: the same run for any ranks, micro-batches and ZeRO stages; resume bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launcher import run_ranks
from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, losses, pack_tiny, sample_ids

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).with_name("rank_runs.py")
MODELS = {
    "flexible": ["model.flexible_patches=[2, 4, 8]", "model.resampling=flexivit"],
    "naflex": [
        "model.patch_size=2",
        "model.pooling=map",
        "model.resampling=siglip2",
        "model.naflex={sequence_lengths: [9, 16], least_share: 0.5}",
        "model.stochastic_depth=0.2",
        "objective.augment={crop: random_resized, scale: [0.5, 1.0], ratio: [0.5, 2.0], flip: true}",
    ],
}
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps each: on one rank; on two at every stage in micro-batches; at stage 3 also in two parts, recomputed."""
    root = tmp_path_factory.mktemp("variable")
    pack_tiny(root)
    launch(root, [job(f"{name}-plain", name, "parallel.zero_stage=1") for name in MODELS], num_ranks=1)
    sharded = "parallel.micro_batch=2"
    jobs = [job(f"{name}-{stage}", name, sharded, f"parallel.zero_stage={stage}") for name in MODELS for stage in STAGES]
    for name in MODELS:
        options = (sharded, "parallel.zero_stage=3", "parallel.recompute=full")
        jobs += [job(f"{name}-parts", name, *options, stop_at=stop) for stop in (3, None)]
    launch(root, jobs, num_ranks=2)
    return root / "runs"


def job(name: str, model: str, *overrides: str, stop_at: int | None = None) -> dict[str, Any]:
    options = [f"name={name}", "train.num_samples=96", "parallel.precision=fp32", *MODELS[model], *overrides]
    return {"do": "train", "overrides": options, "stop_at": stop_at}


def launch(root: Path, jobs: list[dict[str, Any]], *, num_ranks: int) -> None:
    expected = [75 if job["stop_at"] else 0 for job in jobs]
    assert run_ranks(SCRIPT, root, json.dumps(jobs), num_ranks=num_ranks) == [expected] * num_ranks


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", MODELS)
def test_the_run_is_the_same_at_any_stage_micro_batch_and_number_of_ranks(runs: Path, name: str, stage: int) -> None:
    curve = losses(runs / f"{name}-plain")
    assert len(set(curve.values())) > 3, "it learns"
    assert sample_ids(runs / f"{name}-{stage}") == sample_ids(runs / f"{name}-plain")
    assert losses(runs / f"{name}-{stage}") == pytest.approx(curve, rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_sharded_run_resumes_bit_for_bit_and_recomputes(runs: Path, name: str) -> None:
    whole, parts = runs / f"{name}-3", runs / f"{name}-parts"
    assert losses(parts) == losses(whole)
    assert_equal_tensors(checkpoint_tensors(parts, step=6), checkpoint_tensors(whole, step=6))
