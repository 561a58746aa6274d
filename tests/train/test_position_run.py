"""Runs of vision transformers with turns and biases: a stopped one goes on bit for bit, and ranks that share the weights train alike."""

import json
from pathlib import Path

import pytest

from tests.launcher import run_ranks
from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, losses, pack_tiny, stopped, tiny_config
from vitscale import api

DRAWN = [
    "model.positions=none",
    "model.rotary={kind: dinov3, shift: 0.1, jitter: 1.2, rescale: 2.0}",
    "model.position_bias={kind: log_spaced, hidden_width: 8}",
    "model.stochastic_depth=0.3",
]
LEARNED = [
    "model.positions=factorised",
    "model.rotary={kind: mixed}",
    "model.position_bias={kind: relative, shared: true}",
    "model.num_registers=1",
]
DECOMPOSED = ["model.pooling=mean", "model.window=1", "model.global_blocks=[1]", "model.position_bias={kind: decomposed}"]


def test_a_stopped_run_whose_coordinates_are_drawn_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = tiny_config(tmp_path, "name=whole", *DRAWN)
    api.train(whole)
    parts = stopped(tmp_path, "name=parts", *DRAWN)
    api.train(parts)
    assert losses(parts.run_dir) == losses(whole.run_dir)
    assert_equal_tensors(checkpoint_tensors(parts.run_dir, step=6), checkpoint_tensors(whole.run_dir, step=6))


@pytest.mark.dist
def test_positions_train_alike_on_one_rank_and_sharded_on_two(tmp_path: Path) -> None:
    pack_tiny(tmp_path)
    options = {"drawn": DRAWN, "learned": LEARNED, "decomposed": DECOMPOSED}
    sharded = {"drawn": "selective", "learned": "full", "decomposed": "none"}
    jobs = []
    for name, recompute in sharded.items():
        api.train(tiny_config(tmp_path, f"name={name}", *options[name]))
        overrides = [f"name={name}-sharded", *options[name], "parallel.zero_stage=3", f"parallel.recompute={recompute}"]
        jobs += [{"do": "train", "overrides": overrides, "stop_at": stop} for stop in (3, None)]
    script = Path(__file__).with_name("rank_runs.py")
    assert run_ranks(script, tmp_path, json.dumps(jobs), num_ranks=2) == [[75, 0] * 3] * 2
    for name in sharded:
        assert losses(tmp_path / "runs" / f"{name}-sharded") == pytest.approx(losses(tmp_path / "runs" / name), rel=1e-5), name
