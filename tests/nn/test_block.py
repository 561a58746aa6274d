import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from timm.models.vision_transformer_sam import Block as SamBlock
from torch import Tensor, nn

from vitscale.nn.block import Block, BlockSpec, ParallelBlock
from vitscale.nn.context import BlockContext
from vitscale.nn.init import materialise
from vitscale.nn.resample import Grid

CONTEXT = BlockContext(grid=Grid(5, 6), num_prefix=0)


def spec(**changes: object) -> BlockSpec:
    return BlockSpec(**{"width": 16, "num_heads": 2, "mlp_width": 40, **changes})  # type: ignore[arg-type]


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in materialise(module, seed=0).parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def assert_same(ours: Tensor, theirs: Tensor, *, x: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_parallel_equals_timms_parallel_scaling_block(qkv_bias: bool) -> None:
    settings = {"qkv_bias": "all" if qkv_bias else "none", "qk_norm": True, "layer_scale": 0.5, "norm": "rms"}
    ours = randomised(ParallelBlock(spec(**settings), index=0))
    theirs = ParallelScalingBlock(16, 2, mlp_ratio=2.5, qkv_bias=qkv_bias, qk_norm=True, init_values=0.5, norm_layer=nn.RMSNorm)
    state = dict(ours.state_dict())
    wanted = {
        "in_norm.weight": state["norm1.weight"],
        "in_proj.weight": torch.cat([state["mlp.fc1.weight"], state["attn.qkv.weight"]]),
        "q_norm.weight": state["attn.q_norm.weight"],
        "k_norm.weight": state["attn.k_norm.weight"],
        "ls.gamma": state["ls1.gamma"],
        **{f"attn_out_proj.{leaf}": state[f"attn.proj.{leaf}"] for leaf in ("weight", "bias")},
        **{f"mlp_out_proj.{leaf}": state[f"mlp.fc2.{leaf}"] for leaf in ("weight", "bias")},
    }
    if qkv_bias:
        wanted["in_proj.bias"] = torch.cat([state["mlp.fc1.bias"], state["attn.qkv.bias"]])
    else:
        wanted["mlp_bias"] = state["mlp.fc1.bias"]
    theirs.load_state_dict(wanted)
    for norm in (theirs.in_norm, theirs.q_norm, theirs.k_norm):
        norm.eps = 1e-6
    x_BND = torch.randn(2, 7, 16, requires_grad=True)
    assert_same(ours(x_BND, context=CONTEXT), theirs(x_BND), x=x_BND)


def test_windowed_equals_sams_block() -> None:
    ours = randomised(Block(spec(window=4), index=0))
    theirs = SamBlock(16, 2, mlp_ratio=2.5, qkv_bias=True, window_size=4, norm_layer=nn.LayerNorm)
    theirs.load_state_dict(ours.state_dict())
    theirs.norm1.eps = theirs.norm2.eps = 1e-6
    x_BND = torch.randn(2, 30, 16, requires_grad=True)
    assert_same(ours(x_BND, context=CONTEXT), theirs(x_BND.unflatten(1, (5, 6))).flatten(1, 2), x=x_BND)


def test_dropouts_of_all_blocks_are_told_apart() -> None:
    blocks = [Block(spec(dropout=0.5), index=index) for index in range(3)] + [ParallelBlock(spec(dropout=0.5), index=3)]
    sites = [dropout.site for block in blocks for dropout in (block.attention_dropout, *block.mlp.dropouts)]
    assert sorted(sites) == list(range(1, 13))  # 0 is the embedding's
