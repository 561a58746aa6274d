"""Vision transformers behind a stem, and with attention between channels: stopped runs go on bit for bit, sharded ones train alike."""

import json
from pathlib import Path

import pytest

from tests.launcher import run_ranks
from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, losses, pack_tiny, stopped, tiny_config
from vitscale import api

RESNET = "model.stem={kind: resnet, units: [1], width: 32}"
SIZES = "image_size: 8, patch_size: 4, num_channels: 1, width: 16, depth: 2, num_heads: 2"
CHANNELS = f"model={{kind: vit, {SIZES}, pooling: mean, attention: cross_covariance, stem: {{kind: convolutions, widths: [8, 16]}}}}"


@pytest.mark.parametrize("model", [RESNET, CHANNELS])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, model: str) -> None:
    whole = tiny_config(tmp_path, "name=whole", model)
    api.train(whole)
    parts = stopped(tmp_path, "name=parts", model)
    api.train(parts)
    assert losses(parts.run_dir) == losses(whole.run_dir)
    assert_equal_tensors(checkpoint_tensors(parts.run_dir, step=6), checkpoint_tensors(whole.run_dir, step=6))


@pytest.mark.dist
def test_a_hybrid_trains_alike_on_one_rank_and_sharded_on_two(tmp_path: Path) -> None:
    pack_tiny(tmp_path)
    whole = tiny_config(tmp_path, "name=whole", RESNET)
    api.train(whole)
    options = [RESNET, "parallel.zero_stage=3", "parallel.recompute=full"]
    jobs = [{"do": "train", "overrides": ["name=sharded", *options], "stop_at": stop} for stop in (3, None)]
    script = Path(__file__).with_name("rank_runs.py")
    assert run_ranks(script, tmp_path, json.dumps(jobs), num_ranks=2) == [[75, 0]] * 2
    sharded = losses(tmp_path / "runs" / "sharded")
    assert sharded == pytest.approx(losses(whole.run_dir), rel=1e-5)
