"""Decisions of the plan, by tables, and the problems it refuses."""

import json
from typing import Any

import pytest

from vitscale.config import ConfigError, apply_overrides, decode
from vitscale.plan.cluster import Cluster
from vitscale.plan.plan import make_plan, resolve
from vitscale.run_config import RunConfig

BASE: dict[str, Any] = {
    "name": "test",
    "model": {"kind": "vit", "variant": "Ti/16", "image_size": 224},
    "objective": {"kind": "supervised", "num_classes": 1000},
    "data": {"kind": "shards", "path": "nowhere"},
    "optim": {"lr": 1e-3},
    "train": {"num_samples": 100_000, "global_batch": 1024},
}
GPU = Cluster(device="cuda", world_size=8, memory_bytes=80 * 2**30, host_memory_bytes=100 * 2**30)
CPU = Cluster(device="cpu", world_size=2, memory_bytes=12 * 2**30, host_memory_bytes=12 * 2**30)


def config(*overrides: str) -> RunConfig:
    return decode(RunConfig, values=apply_overrides(BASE, overrides=overrides), source="test")


@pytest.mark.parametrize(
    ("overrides", "cluster", "expected"),
    [
        ([], GPU, {"precision": "bf16", "zero_stage": 1, "micro_batch": 128, "accumulation": 1, "lanes": 256, "num_steps": 97}),
        ([], CPU, {"precision": "fp32", "zero_stage": 1, "micro_batch": 64, "accumulation": 8}),
        (["model.variant=22B/14"], GPU, {"zero_stage": 3}),
        (["model.variant=G/14", "parallel.recompute=full"], GPU, {"zero_stage": 1}),
        (["parallel.zero_stage=2", "parallel.micro_batch=16"], GPU, {"zero_stage": 2, "micro_batch": 16, "accumulation": 8}),
        (["data.lanes=16"], GPU, {"lanes": 16}),
        (["train.global_batch=96"], GPU, {"lanes": 32, "micro_batch": 12}),
        (["parallel.precision=fp32", "parallel.zero_stage=0"], GPU, {"precision": "fp32", "zero_stage": 0}),
    ],
)
def test_decisions(overrides: list[str], cluster: Cluster, expected: dict[str, object]) -> None:
    plan = make_plan(config(*overrides), cluster=cluster)
    assert {key: getattr(plan, key) for key in expected} == expected
    assert plan.micro_batch * plan.accumulation * plan.world_size == plan.global_batch


def test_a_model_that_needs_a_smaller_micro_batch_gets_one() -> None:
    large = make_plan(config("model.variant=H/14", "train.global_batch=4096"), cluster=GPU)
    assert large.micro_batch < 512
    assert large.memory.total < 0.85 * GPU.memory_bytes


@pytest.mark.parametrize(
    ("overrides", "cluster", "in_background"),
    [
        (["model.variant=B/16"], CPU, True),
        (["model.variant=H/14", "train.global_batch=2", "parallel.recompute=full"], CPU, False),
        (["model.variant=H/14", "checkpoint.in_background=true"], CPU, True),
        (["model.variant=B/16", "checkpoint.in_background=false"], GPU, False),
        (["model.variant=G/14", "parallel.recompute=full"], GPU, True),
        (["model.variant=22B/14", "parallel.recompute=full"], GPU, True),
        (["model.variant=22B/14", "parallel.recompute=full", "optim.ema_decay=0.999", "parallel.offload_optimizer=true"], GPU, False),
    ],
)
def test_saves_go_on_in_the_background_where_the_copy_fits(overrides: list[str], cluster: Cluster, in_background: bool) -> None:
    assert make_plan(config(*overrides), cluster=cluster).saves_in_background is in_background


def test_every_open_choice_has_a_reason() -> None:
    reasons = make_plan(config(), cluster=GPU).reasons
    for key in ("parallel.precision", "parallel.zero_stage", "parallel.micro_batch", "data.lanes", "checkpoint.in_background"):
        assert any(reason.startswith(f"{key}:") for reason in reasons), key
    chosen = config(
        "parallel.precision=fp32", "parallel.zero_stage=1", "parallel.micro_batch=8", "data.lanes=8", "checkpoint.in_background=false"
    )
    assert make_plan(chosen, cluster=GPU).reasons == ()


def test_lanes_do_not_depend_on_the_cluster() -> None:
    assert make_plan(config(), cluster=GPU).lanes == make_plan(config(), cluster=CPU).lanes


@pytest.mark.parametrize(
    ("overrides", "cluster", "message"),
    [
        (["train.global_batch=100"], GPU, r"train.global_batch: 100 does not divide among 8 ranks; use 96 or 104"),
        (["parallel.micro_batch=24"], GPU, r"parallel.micro_batch: 24 does not divide the 128 samples"),
        (["parallel.zero_stage=0"], GPU, r"parallel.zero_stage: 0 with precision bf16"),
        (
            ["parallel.zero_stage=0", "parallel.precision=fp32", "parallel.offload_optimizer=true"],
            GPU,
            r"parallel.offload_optimizer: at ZeRO stage 0",
        ),
        (["train.global_batch=8", "objective.mixup_alpha=0.2"], GPU, r"train.global_batch: .* the 1 samples of each of 8 ranks"),
        (["parallel.micro_batch=1", "objective.mixup_alpha=0.2"], GPU, r"parallel.micro_batch: 1 is odd"),
    ],
)
def test_problems(overrides: list[str], cluster: Cluster, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(config(*overrides), cluster=cluster)


def test_resolving_fills_what_the_result_depends_on_and_nothing_else() -> None:
    asked = config()
    resolved = resolve(asked, plan=make_plan(asked, cluster=GPU))
    assert resolved.data.lanes == 256
    assert resolved.parallel.precision == "bf16"
    assert resolved.parallel.micro_batch == "auto", "another number of ranks may need another"


def test_plan_json_is_complete() -> None:
    plan = make_plan(config(), cluster=GPU)
    content = json.loads(plan.to_json())
    assert content["memory"]["weights"] == plan.memory.weights
    assert content["memory_total_bytes"] == plan.memory.total
    assert content["num_parameters"] == 5_717_416


def test_offload_makes_room_and_says_where() -> None:
    options = ["model.variant=G/14", "train.global_batch=8"]
    plain, offloaded = (make_plan(config(*options, f"parallel.offload_optimizer={value}"), cluster=GPU) for value in ("false", "true"))
    assert offloaded.memory.total < plain.memory.total
    assert any(reason.startswith("parallel.offload_optimizer: masters") and "GiB of host memory" in reason for reason in offloaded.reasons)
    assert not any(reason.startswith("parallel.offload_optimizer") for reason in plain.reasons)
    small = make_plan(config("parallel.offload_optimizer=true"), cluster=CPU)
    assert any(reason.startswith("parallel.offload_optimizer: frees nothing on a CPU") for reason in small.reasons)
