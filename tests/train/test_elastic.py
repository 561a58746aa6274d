"""The promise, on real process groups: the same samples and losses for any ranks, workers and stages; resume bit for bit."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests.launcher import run_ranks
from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, losses, pack_tiny, sample_ids, tiny_config
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.train.evaluate import load_objective
from vitscale.train.export import export_checkpoint

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]  # the first test waits for all runs

SCRIPT = Path(__file__).with_name("rank_runs.py")
TWENTY_STEPS = ["train.num_samples=320", "checkpoint.every_steps=10"]
STAGES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
TOPOLOGIES = [(1, 0), (1, 1), (2, 0), (2, 2), (4, 1)]  # ranks, loader processes in each
COPIES = [(1, 3), (4, 3), (1, 1), (2, 1), (2, 0)]  # ranks, stage
SIZES = "kind: vit, image_size: 8, patch_size: 2, num_channels: 1, width: 16, depth: 2, num_heads: 2"
FAMILY = {  # models whose parameters are read in every way there is, and which draw
    "tokens": "num_registers: 2, distillation_token: true, layer_scale: 0.1, position_bias: {kind: relative}, rotary: {kind: mixed}",
    "shared": "pooling: map, parallel: true, qk_norm: true, qkv_bias: no_key, positions: factorised,"
    " position_bias: {kind: relative, shared: true}, mlp: swiglu, mlp_norm: true",
    "merging": "token_merging: {per_block: 3}",
    "halting": "pooling: mean, patch_dropout: 0.2, halting: {gate_scale: 2, gate_shift: -2, ponder_weight: 0.01, prior: {depth: 1.5}}",
    "channels": "stem: {kind: convolutions, widths: [8]}, attention: cross_covariance, pooling: mean, layer_scale: 0.1",
}
DROPS = "stochastic_depth: 0.3, stochastic_depth_schedule: constant, dropout: 0.1"  # not where tokens decide on their depth
CROSSINGS = [("3-fp32", (2, 1, "bf16")), ("3-fp32", (1, 3, "bf16")), ("1-bf16", (2, 3, "fp32")), ("3-bf16", (1, 0, "fp32"))]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs that are compared below, in one launch for each number of ranks: starting processes takes longer than training."""
    root = tmp_path_factory.mktemp("elastic")
    pack_tiny(root)
    for num_ranks, stage in COPIES:
        checkpoints = root / "runs" / f"copy-{num_ranks}-{stage}" / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / "step-00000010").symlink_to(root / "runs" / "whole-3-fp32" / "checkpoints" / "step-00000010")
    for origin, target in CROSSINGS:
        checkpoints = root / "runs" / _crossing(origin, target) / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / "step-00000010").symlink_to(root / "runs" / f"whole-{origin}" / "checkpoints" / "step-00000010")
    launch(root, _at_every_stage() + _with_loader_processes(2) + _copies(2) + _switched() + _family(2), num_ranks=2)
    launch(root, _with_loader_processes(1) + _copies(1) + _family(1), num_ranks=1)
    launch(root, _with_loader_processes(4) + _copies(4), num_ranks=4)
    return root / "runs"


def launch(root: Path, jobs: list[dict[str, Any]], *, num_ranks: int) -> None:
    expected = [75 if job["stop_at"] else 0 for job in jobs]
    assert run_ranks(SCRIPT, root, json.dumps(jobs), num_ranks=num_ranks) == [expected] * num_ranks


def _at_every_stage() -> list[dict[str, Any]]:
    """A whole run of 20 steps, and one stopped after 10 and resumed."""
    jobs = []
    for stage, precision in STAGES:
        options = [f"parallel.zero_stage={stage}", f"parallel.precision={precision}"]
        jobs.append(_job("train", f"whole-{stage}-{precision}", *options))
        jobs += [_job("train", f"parts-{stage}-{precision}", *options, stop_at=stop) for stop in (10, None)]
    return jobs


def _with_loader_processes(num_ranks: int) -> list[dict[str, Any]]:
    return [_job("train", f"{ranks}x{workers}", f"data.num_workers={workers}") for ranks, workers in TOPOLOGIES if ranks == num_ranks]


def _copies(num_ranks: int) -> list[dict[str, Any]]:
    """The checkpoint of step 10 restored and written anew."""
    options = "parallel.zero_stage={}", "parallel.precision=fp32"
    return [
        _job("resave", f"copy-{ranks}-{stage}", *(option.format(stage) for option in options))
        for ranks, stage in COPIES
        if ranks == num_ranks
    ] + [
        _job(
            "resave",
            _crossing(origin, target),
            f"parallel.zero_stage={target[1]}",
            f"parallel.precision={target[2]}",
            allow_change=["parallel.precision"],
        )
        for origin, target in CROSSINGS
        if target[0] == num_ranks
    ]


def _crossing(origin: str, target: tuple[int, int, str]) -> str:
    return f"crossing-{origin}-to-{'-'.join(map(str, target))}"


def _switched() -> list[dict[str, Any]]:
    """A run that goes on at another stage with its optimizer offloaded, and one that is offloaded from the start."""
    offloaded = ("parallel.precision=fp32", "parallel.zero_stage=2", "parallel.offload_optimizer=true")
    return [
        _job("train", "switched", "parallel.precision=fp32", "parallel.zero_stage=3", stop_at=10),
        _job("train", "switched", *offloaded),
        _job("train", "offloaded", *offloaded),
    ]


def _family(num_ranks: int) -> list[dict[str, Any]]:
    """Four steps of each model: on one rank at stage 1, on two at stage 3 in micro-batches, whole and in two parts."""
    jobs = []
    for name, settings in FAMILY.items():
        model = f"model={{{SIZES}, {settings}{'' if 'halting' in settings else f', {DROPS}'}}}"
        options = ["train.num_samples=64", "checkpoint.every_steps=2", "parallel.precision=fp32", model]
        if num_ranks == 1:
            jobs.append(_job("train", f"{name}-plain", *options, "parallel.zero_stage=1"))
            continue
        options += ["parallel.zero_stage=3", "parallel.micro_batch=2"]
        jobs.append(_job("train", f"{name}-sharded", *options))
        jobs += [_job("train", f"{name}-parts", *options, "parallel.recompute=full", stop_at=stop) for stop in (2, None)]
    return jobs


def _job(do: str, name: str, *overrides: str, stop_at: int | None = None, allow_change: Sequence[str] = ()) -> dict[str, Any]:
    return {"do": do, "overrides": [f"name={name}", *TWENTY_STEPS, *overrides], "stop_at": stop_at, "allow_change": list(allow_change)}


def test_ranks_and_workers_change_neither_samples_nor_losses(runs: Path) -> None:
    names = [f"{ranks}x{workers}" for ranks, workers in TOPOLOGIES]
    ids = {name: sample_ids(runs / name) for name in names}
    curves = {name: losses(runs / name) for name in names}
    assert sorted(ids["1x0"]) == list(range(1, 21))
    for name in names:
        assert ids[name] == ids["1x0"], name
        assert curves[name] == pytest.approx(curves["1x0"], rel=1e-5), name
    assert curves["1x0"] == curves["1x1"], "at the same number of ranks, bit for bit"
    assert curves["2x0"] == curves["2x2"]


@pytest.mark.parametrize(("stage", "precision"), STAGES)
def test_a_resumed_run_equals_the_whole_one_bit_for_bit(runs: Path, stage: int, precision: str) -> None:
    whole, parts = (runs / f"{kind}-{stage}-{precision}" for kind in ("whole", "parts"))
    assert sorted(sample_ids(parts)) == list(range(1, 21))
    assert sample_ids(parts) == sample_ids(whole)
    assert losses(parts) == losses(whole)
    assert_equal_tensors(checkpoint_tensors(parts, step=20), checkpoint_tensors(whole, step=20))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_agree_in_fp32(runs: Path, stage: int) -> None:
    assert losses(runs / f"whole-{stage}-fp32") == pytest.approx(losses(runs / "whole-0-fp32"), rel=1e-6)


@pytest.mark.parametrize(("num_ranks", "stage"), COPIES)
def test_a_checkpoint_of_two_ranks_at_stage_3_restores_exactly_elsewhere(runs: Path, num_ranks: int, stage: int) -> None:
    source, copy = runs / "whole-3-fp32", runs / f"copy-{num_ranks}-{stage}"
    assert not (copy / "checkpoints" / "step-00000010").is_symlink(), "written anew"
    assert_equal_tensors(checkpoint_tensors(copy, step=10), checkpoint_tensors(source, step=10))


@pytest.mark.parametrize(("origin", "target"), CROSSINGS)
def test_a_change_of_precision_keeps_every_master(runs: Path, origin: str, target: tuple[int, int, str]) -> None:
    copy = runs / _crossing(origin, target)
    assert not (copy / "checkpoints" / "step-00000010").is_symlink(), "written anew"
    assert_equal_tensors(checkpoint_tensors(copy, step=10), checkpoint_tensors(runs / f"whole-{origin}", step=10))


@pytest.mark.parametrize("name", FAMILY)
def test_every_kind_of_parameter_and_draw_is_the_same_at_any_stage_micro_batch_and_number_of_ranks(runs: Path, name: str) -> None:
    curve = losses(runs / f"{name}-plain")
    assert len(set(curve.values())) > 2, "it learns"
    assert losses(runs / f"{name}-sharded") == pytest.approx(curve, rel=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_every_kind_of_parameter_and_draw_resumes_bit_for_bit_and_recomputes(runs: Path, name: str) -> None:
    whole, parts = runs / f"{name}-sharded", runs / f"{name}-parts"
    assert losses(parts) == losses(whole)
    assert_equal_tensors(checkpoint_tensors(parts, step=4), checkpoint_tensors(whole, step=4))


@pytest.mark.parametrize("name", ["switched", "offloaded"])
def test_offloading_the_optimizer_is_the_same_run(runs: Path, name: str) -> None:
    assert sample_ids(runs / name) == sample_ids(runs / "whole-2-fp32")
    assert losses(runs / name) == pytest.approx(losses(runs / "whole-2-fp32"), rel=1e-6)


@pytest.mark.parametrize("kind", ["weight", "ema"])
def test_a_sharded_checkpoint_is_evaluated_and_exported_without_a_process_group(
    runs: Path, kind: Literal["weight", "ema"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "init_process_group", lambda *_args, **_kwargs: pytest.fail("a process group was made"))
    run = runs / "offloaded"
    stored = {name: value for (name, held_kind), value in checkpoint_tensors(run, step=20).items() if held_kind == kind}
    config = tiny_config(runs.parent, "name=offloaded")
    reader = CheckpointReader(run / "checkpoints" / "step-00000020")
    objective = load_objective(config, reader=reader, kind=kind, device=torch.device("cpu"), dtype=torch.float32)
    assert {name for name, parameter in objective.named_parameters() if torch.equal(parameter, stored[name])} == set(stored)
    exported = load_file(export_checkpoint(run, layout="timm", kind=kind, output=tmp_path / "timm").folder / "model.safetensors")
    assert torch.equal(exported["head.weight"], stored["head.fc.weight"])
