"""The DeepSpeed configuration holds the cure of every known trap, and refuses what would train wrongly."""

from typing import Any

import pytest

from vitscale.config import ConfigError
from vitscale.engine.deepspeed_config import EngineConfig, deepspeed_config

HUGE = 700_000_000


def configured(*, num_parameters: int = HUGE, **settings: Any) -> dict[str, Any]:
    values = {"zero_stage": 1, "precision": "fp32", "device": "cpu", "micro_batch": 4} | settings
    return deepspeed_config(EngineConfig(**values), num_parameters=num_parameters)


@pytest.mark.parametrize(
    ("settings", "path", "expected"),
    [
        ({}, "train_micro_batch_size_per_gpu", 4),
        ({"offload_optimizer": True}, "zero_optimization.offload_optimizer.device", "cpu"),
        ({"offload_optimizer": True}, "zero_optimization.offload_optimizer.pin_memory", False),
        ({"offload_optimizer": True, "device": "cuda"}, "zero_optimization.offload_optimizer.pin_memory", True),
        ({"offload_optimizer": True}, "zero_force_ds_cpu_optimizer", False),
        ({"accumulation": 3}, "gradient_accumulation_steps", 3),
        ({"zero_stage": 2}, "zero_optimization.stage", 2),
        ({"clip_grad_norm": 0.5}, "gradient_clipping", 0.5),
        ({"clip_grad_norm": None}, "gradient_clipping", 0.0),
        ({"zero_stage": 0, "clip_grad_norm": 0.5}, "gradient_clipping", 0.0),
        ({"precision": "bf16"}, "bf16.enabled", True),
        ({"precision": "bf16"}, "bf16.check_grad_overflow", True),
        ({}, "bf16.enabled", False),
        ({"zero_stage": 3}, "zero_optimization.memory_efficient_linear", False),
        ({"zero_stage": 3}, "zero_optimization.sub_group_size", 30_000_000),
        ({"zero_stage": 3}, "zero_optimization.stage3_max_live_parameters", 50_000_000),
        ({"zero_stage": 3, "device": "cuda"}, "zero_optimization.stage3_max_live_parameters", 1_000_000_000),
        ({"zero_stage": 3}, "zero_optimization.reduce_bucket_size", 20_000_000),
        ({"zero_stage": 3, "num_parameters": 1000}, "zero_optimization.reduce_bucket_size", 1000),
        ({}, "zero_optimization.overlap_comm", False),
        ({"device": "cuda"}, "zero_optimization.overlap_comm", True),
        ({}, "zero_optimization.contiguous_gradients", False),
        ({"zero_stage": 2}, "zero_optimization.contiguous_gradients", True),
        ({"device": "cuda"}, "zero_optimization.contiguous_gradients", True),
    ],
)
def test_setting_reaches_deepspeed(settings: dict[str, Any], path: str, expected: Any) -> None:
    value: Any = configured(**settings)
    for key in path.split("."):
        value = value[key]
    assert value == expected


def test_stage_0_has_no_zero_settings() -> None:
    assert configured(zero_stage=0)["zero_optimization"] == {"stage": 0}


@pytest.mark.parametrize(
    ("stage", "precision", "accumulation", "in_fp32"),
    [(2, "bf16", 4, True), (3, "bf16", 4, True), (1, "bf16", 4, False), (3, "bf16", 1, False), (3, "fp32", 4, False)],
)
def test_low_precision_gradients_are_summed_in_fp32(stage: int, precision: str, accumulation: int, in_fp32: bool) -> None:
    settings = configured(zero_stage=stage, precision=precision, accumulation=accumulation)
    assert (settings.get("data_types") == {"grad_accum_dtype": "fp32"}) is in_fp32


def test_optimizer_is_never_built_by_deepspeed() -> None:
    assert "optimizer" not in configured(), "DeepSpeed compiles its own optimizers for minutes"


def test_offloading_at_stage_0_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.offload_optimizer: at ZeRO stage 0 .* use parallel\.zero_stage 1, 2, 3 or auto"):
        configured(zero_stage=0, offload_optimizer=True)


def test_bf16_at_stage_0_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.zero_stage.*use stage 1, 2 or 3"):
        configured(zero_stage=0, precision="bf16")
