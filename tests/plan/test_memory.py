"""The memory estimate: ZeRO's arithmetic, and monotone in everything that can only cost more."""

import pytest
import torch

from vitscale.models import BlockShape, HieraConfig, SwinConfig, ViTConfig
from vitscale.nn.halting import Halting
from vitscale.nn.init import materialise
from vitscale.nn.resample import Grid
from vitscale.plan.memory import ModelSize, estimate_memory

B16 = ModelSize(num_parameters=86_567_656, blocks=ViTConfig(variant="B/16", image_size=224).shape.blocks)


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
    per_tensor = 2 * 32 * 197 * 768
    assert kept == pytest.approx(per_tensor * (12 + (8 + 2 * 4) + 3))


def test_blocks_of_several_sizes_are_added_up() -> None:
    wide = BlockShape(width=64, mlp_width=256, num_tokens=4, attended_tokens=4)
    long = BlockShape(width=32, mlp_width=128, num_tokens=16, attended_tokens=4)
    size = ModelSize(num_parameters=1000, blocks=(long, wide))
    # fp32, one image: 16 tensors of a block kept whole, 17 with windows, 1 of one recomputed, 3 outside of the blocks.
    assert estimate(size, precision="fp32", micro_batch=1).activations == 4 * (17 * 16 * 32 + 16 * 4 * 64 + 3 * 16 * 32)
    recomputed = estimate(size, precision="fp32", micro_batch=1, recompute="full", recompute_every=2).activations
    assert recomputed == 4 * (16 * 32 + 16 * 4 * 64 + 17 * 16 * 32 + 3 * 16 * 32)
    stage_3 = estimate(size, precision="fp32", zero_stage=3, world_size=1000)
    assert stage_3.weights == 4 * (1 + 2 * 64 * (4 * 64 + 2 * 256))


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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_scale": 0.1},
        {"mlp": "swiglu", "mlp_norm": True},
        {"qk_norm": True},
        {"parallel": True, "layer_scale": 0.1},
        {"window": 3},
        {"rotary": {"kind": "dinov3"}},
        {"rotary": {"kind": "eva02"}, "qk_norm": True},
        {"rotary": {"kind": "mixed"}},
        {"rotary": {"kind": "mixed"}, "qk_norm": True},
        {"position_bias": {"kind": "relative"}},
        {"position_bias": {"kind": "decomposed"}},
        {"position_bias": {"kind": "log_spaced", "hidden_width": 8}},
        {"attention": "cross_covariance"},
        {"attention": "cross_covariance", "layer_scale": 0.1},
        {"dropout": 0.1},
        {"dropout": 0.1, "mlp": "swiglu"},
        {"dropout": 0.1, "attention": "cross_covariance"},
        {"dropout": 0.1, "token_merging": {"per_block": 8}},
        {"token_merging": {"per_block": 8}},
        {"token_merging": {"per_block": 32}, "layer_scale": 0.1},
    ],
)
def test_what_a_block_keeps_for_backward_is_what_is_counted(changes: dict) -> None:
    config = ViTConfig.model_validate({"variant": "mu/2", "width": 64, "mlp_width": 256, "image_size": 16, "pooling": "mean", **changes})
    with torch.device("meta"):
        vit = config.build()
    block = materialise(vit, seed=0).blocks[0]
    # Several images: tables of positions, and the network that makes one, are kept once for all of them.
    batch = 8
    x_BND = torch.randn(batch, 64, 64, requires_grad=True)
    context = vit._context(x_BND, grid=Grid(8, 8), seed_B=torch.arange(batch) if vit.draw_keys else None, patches_BP=None)
    y, kept_bytes = run_and_count(block, x_BND, context=context)
    y_BND = y if isinstance(y, torch.Tensor) else y.x_BND
    assert y_BND.shape == (batch, config.shape.blocks[0].mlp_tokens, 64)
    assert estimated_bytes(config.shape.blocks[0], batch=batch) == pytest.approx(kept_bytes, rel=0.05)


def test_a_norm_of_the_embedded_tokens_keeps_them_for_backward() -> None:
    sizes = {"variant": "mu/2", "width": 64, "mlp_width": 256, "image_size": 16, "pooling": "mean"}
    elements = []
    for has_norm in (False, True):
        config = ViTConfig.model_validate({**sizes, "embedding_norm": has_norm})
        size = ModelSize(num_parameters=0, blocks=config.shape.blocks, embedding_norm=config.shape.embedding_norm)
        elements.append(estimate(size, precision="fp32", micro_batch=1).activations)
    assert elements[1] - elements[0] == 4 * 64 * 64


SWIN = {"image_size": 32, "patch_size": 2, "width": 32, "depths": (2, 1), "num_heads": (2, 4), "window_size": 4}
HIERA = {"image_size": 32, "patch_size": 2, "width": 32, "depths": (1, 1, 1), "num_heads": 2, "window_stages": 1}


@pytest.mark.parametrize(
    "config",
    [
        SwinConfig.model_validate(SWIN),
        SwinConfig.model_validate({**SWIN, "version": 2}),
        SwinConfig.model_validate({**SWIN, "window_size": 5}),
        HieraConfig.model_validate(HIERA),
        HieraConfig.model_validate({**HIERA, "shortcut": "concatenate", "layer_scale": 0.1}),
    ],
)
def test_what_blocks_of_hierarchies_keep_for_backward_is_what_is_counted(config: SwinConfig | HieraConfig) -> None:
    with torch.device("meta"):
        model = config.build()
    materialise(model, seed=0)
    found: list[int] = []

    def runner(_index: int, block: torch.nn.Module, x: torch.Tensor, /, **context: object) -> torch.Tensor:
        y, kept_bytes = run_and_count(block, x.detach().requires_grad_(), **context)
        found.append(kept_bytes)
        return y

    model.block_runner = runner
    model(torch.randn(16, 3, 32, 32))
    for shape, kept_bytes in zip(config.shape.blocks, found, strict=True):
        assert estimated_bytes(shape, batch=16) == pytest.approx(kept_bytes, rel=0.05)


def test_what_a_halting_block_keeps_is_what_is_counted_while_almost_all_tokens_go_on() -> None:
    sizes = {"variant": "mu/2", "width": 64, "mlp_width": 256, "image_size": 16, "pooling": "mean", "depth": 2}
    config = ViTConfig.model_validate({**sizes, "halting": {"gate_scale": 1000, "gate_shift": -1500}})
    with torch.device("meta"):
        vit = config.build()
    block = materialise(vit, seed=0).blocks[0]
    x_BND = torch.zeros(8, 64, 64)
    x_BND[:, 0, 0] = 10  # these halt at once
    halting = Halting(config.halting, x_BND, num_blocks=3)
    x_1TD = halting.after_block(x_BND.view(1, -1, 64)).requires_grad_()

    y_1TD, kept_bytes = run_and_count(BlockAndHalting(block, halting), x_1TD, num_tokens=64, packing=halting.packing)
    assert y_1TD.shape == x_1TD.shape == (1, 8 * 63, 64)
    assert estimated_bytes(config.shape.blocks[0], batch=8) == pytest.approx(kept_bytes, rel=0.05)


class BlockAndHalting(torch.nn.Module):
    """A block, and what becomes of its tokens."""

    def __init__(self, block: torch.nn.Module, halting: Halting) -> None:
        super().__init__()
        self.block, self.halting = block, halting

    def forward(self, x_1TD: torch.Tensor, **context: object) -> torch.Tensor:
        return self.halting.after_block(self.block(x_1TD, **context))


def run_and_count(block: torch.nn.Module, x: torch.Tensor, **context: object):  # type: ignore[no-untyped-def]
    """What the block makes, and the bytes that autograd keeps for its backward pass beside its weights."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = block(x, **context)
    return y, sum(kept.values())


def estimated_bytes(block: BlockShape, *, batch: int) -> int:
    """The estimate for one block without what lies outside of blocks."""
    size = ModelSize(num_parameters=0, blocks=(block,))
    activations = estimate(size, precision="fp32", micro_batch=batch, world_size=1).activations
    return activations - 4 * 3 * batch * block.num_tokens * block.width
