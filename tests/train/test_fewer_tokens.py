"""Whole runs of models that leave tokens out: resumed bit for bit, evaluated, and what they spend is told."""

from pathlib import Path

import pytest

from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, losses, read_lines, tiny_config
from vitscale import api
from vitscale.config import StopRequested
from vitscale.run_config import problems

HALTING = ["model.patch_size=2", "model.halting={gate_shift: -3, ponder_weight: 0.01, prior: {depth: 1.5}}", "checkpoint.keep=9"]
MERGING = ["model.patch_size=2", "model.token_merging.per_block=3", "model.stochastic_depth=0.2", "checkpoint.keep=9"]


@pytest.mark.parametrize("options", [HALTING, MERGING], ids=["halting", "merging"])
def test_a_run_resumes_bit_for_bit(tmp_path: Path, options: list[str]) -> None:
    whole, parts = (tiny_config(tmp_path, f"name={name}", *options) for name in ("whole", "parts"))
    api.train(whole)
    with pytest.raises(StopRequested):
        api.train(parts, stop_at_step=3)
    api.train(parts)
    assert losses(parts.run_dir) == losses(whole.run_dir)
    assert_equal_tensors(checkpoint_tensors(parts.run_dir, step=6), checkpoint_tensors(whole.run_dir, step=6))


def test_what_halting_saves_is_logged_and_evaluated(tmp_path: Path) -> None:
    evals = [f"evals.{kind}={{kind: {kind}, path: {tmp_path}/shards, batch_size: 7}}" for kind in ("spending", "classification")]
    config = tiny_config(tmp_path, *HALTING, *evals)
    api.train(config)
    lines = read_lines(config.run_dir / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert all(0 < line["tokens_per_block"] <= 17 and line["backbone_loss"] > 0 for line in steps)
    assert steps[-1]["tokens_per_block"] < 17
    (spent,) = (line for line in lines if "eval/spending/gflops" in line)
    (scored,) = (line for line in lines if "eval/classification/top1" in line)
    assert spent["eval/spending/top1"] == pytest.approx(scored["eval/classification/top1"])
    found = {key.removeprefix("eval/spending/"): value for key, value in spent.items() if key.startswith("eval/spending/")}
    assert api.evaluate(config)["spending"] == pytest.approx(found)
    assert found["gflops_p10"] <= found["gflops_p50"] <= found["gflops_p90"] < found["gflops_most"]
    assert found["gflops_most"] * 1e9 == pytest.approx(config.model.shape.forward_flops)
    quarters = (found["gflops_surest"] + found["gflops_unsurest"]) / 2
    assert 1 <= found["blocks_per_token"] < 2
    assert found["gflops_p10"] * 0.5 < quarters < found["gflops_most"]
    top1 = found["top1"]
    assert top1 * found["gflops_right"] + (1 - top1) * found["gflops_wrong"] == pytest.approx(found["gflops"])


def test_a_model_trained_without_merging_is_evaluated_with_it(tmp_path: Path) -> None:
    options = ["model.patch_size=2", f"evals.test={{kind: classification, path: {tmp_path}/shards}}"]
    config = tiny_config(tmp_path, *options)
    api.train(config)
    plain = api.evaluate(config)
    nothing, much = (api.evaluate(tiny_config(tmp_path, *options, f"model.token_merging.per_block={count}")) for count in (0, 8))
    assert nothing == plain
    assert much["test"]["num_samples"] == 96


def test_spending_is_for_models_that_halt(tmp_path: Path) -> None:
    evals = f"evals.cost={{kind: spending, path: {tmp_path}/shards}}"
    assert list(problems(tiny_config(tmp_path, *HALTING, evals))) == []
    (problem,) = problems(tiny_config(tmp_path, evals))
    assert problem.startswith("evals.cost.kind: spending is told of models that spend different amounts on images; set model.halting")
