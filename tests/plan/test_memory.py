"""The memory estimate: ZeRO's arithmetic, and monotone in everything that can only cost more."""

import pytest

from vitscale.plan.memory import ModelSize, estimate_memory

B16 = ModelSize(num_parameters=86_567_656, depth=12, width=768, mlp_width=3072, num_tokens=197)


def estimate(size: ModelSize = B16, **changes: object):  # type: ignore[no-untyped-def]
    settings = {
        "world_size": 8,
        "zero_stage": 1,
        "precision": "bf16",
        "micro_batch": 32,
        "recompute": "none",
        "recompute_every": 1,
        "ema": False,
        "offload_optimizer": False,
        "device": "cuda",
    }
    return estimate_memory(size, **(settings | changes))  # type: ignore[arg-type]


def test_states_follow_the_zero_paper_in_mixed_precision() -> None:
    # Rajbhandari et al. 2020, table 1: 16 bytes per parameter, of which 12 are sharded at stage 1 and 14 at stage 2.
    for stage, expected in ((1, 4 + 12 / 8), (2, 2 + 14 / 8)):
        memory = estimate(zero_stage=stage)
        states = memory.weights + memory.gradients + memory.optimizer
        assert states / B16.num_parameters == pytest.approx(expected, rel=1e-3)


def test_stage_0_in_fp32_has_no_second_copy_of_the_weights() -> None:
    memory = estimate(zero_stage=0, precision="fp32")
    assert memory.weights + memory.gradients + memory.optimizer == 16 * B16.num_parameters


def test_stage_3_divides_everything_but_the_working_set() -> None:
    few, many = estimate(zero_stage=3, world_size=8), estimate(zero_stage=3, world_size=1024)
    assert many.optimizer * 100 < few.optimizer
    block = 768 * (4 * 768 + 2 * 3072)
    assert many.weights == pytest.approx(2 * (2 * block + B16.num_parameters / 1024), rel=1e-3)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"micro_batch": 16}, {"micro_batch": 32}),
        ({"recompute": "full"}, {"recompute": "selective"}),
        ({"recompute": "selective"}, {"recompute": "none"}),
        ({"recompute": "full", "recompute_every": 1}, {"recompute": "full", "recompute_every": 2}),
        ({"precision": "bf16"}, {"precision": "fp32"}),
        ({"zero_stage": 2}, {"zero_stage": 1}),
        ({"world_size": 16}, {"world_size": 8}),
        ({"ema": False}, {"ema": True}),
        ({"offload_optimizer": True}, {"offload_optimizer": False}),
        ({"offload_optimizer": True, "zero_stage": 3}, {"offload_optimizer": False, "zero_stage": 3}),
        ({"offload_optimizer": True, "zero_stage": 2}, {"offload_optimizer": True, "zero_stage": 1}),
        ({"offload_optimizer": False, "device": "cpu"}, {"offload_optimizer": True, "device": "cpu"}),
    ],
)
def test_more_costs_more(less: dict[str, object], more: dict[str, object]) -> None:
    assert estimate(**less).total < estimate(**more).total


def test_full_recompute_keeps_one_tensor_per_block() -> None:
    kept = estimate(recompute="full").activations
    per_tensor = 2 * 32 * B16.num_tokens * B16.width
    assert kept == pytest.approx(per_tensor * (B16.depth + (8 + 2 * 4) + 3))


@pytest.mark.parametrize(("zero_stage", "on_device"), [(1, 4), (2, 2)])
def test_offload_moves_the_optimizer_and_its_gradients_to_the_host(zero_stage: int, on_device: int) -> None:
    # Ren et al. 2021, section 4: of 16 bytes per parameter the device keeps the weights, and until they are reduced the gradients.
    memory = estimate(zero_stage=zero_stage, offload_optimizer=True, ema=True)
    assert memory.optimizer == 0
    assert memory.weights + memory.gradients == on_device * B16.num_parameters
    # fp32 masters, two moments, average, gradients, and the gradients as they arrive
    assert memory.host / B16.num_parameters == pytest.approx((4 * 5 + 2) / 8, rel=1e-3)
    assert memory.total == memory.weights + memory.gradients + memory.activations
    assert estimate(zero_stage=zero_stage, offload_optimizer=True, device="cpu").host == 0
    assert estimate(zero_stage=zero_stage).host == 0
