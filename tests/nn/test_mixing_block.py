import torch
from timm.layers import LayerNorm2d
from timm.models.xcit import XCABlock

from vitscale.nn.block import BlockSpec
from vitscale.nn.context import BlockContext
from vitscale.nn.init import materialise
from vitscale.nn.mixing_block import MixingBlock
from vitscale.nn.resample import Grid

SPEC = BlockSpec(width=24, num_heads=3, mlp_width=48, layer_scale=0.5, attention="cross_covariance")
OTHER_NAMES = {"ls1.gamma": "gamma1", "ls2.gamma": "gamma2", "ls3.gamma": "gamma3"}


def theirs_name(name: str) -> str:
    return OTHER_NAMES.get(name, name.replace("local_mixing.norm", "local_mp.bn").replace("local_mixing", "local_mp"))


def test_equals_xcits_layer_with_a_layer_norm_between_the_convolutions() -> None:
    torch.manual_seed(0)
    ours = materialise(MixingBlock(SPEC, index=0), seed=0)
    for parameter in ours.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    theirs = XCABlock(24, 3, mlp_ratio=2.0, qkv_bias=True)
    theirs.local_mp.bn = LayerNorm2d(24, eps=1e-6)
    for norm in (theirs.norm1, theirs.norm2, theirs.norm3):
        norm.eps = 1e-6
    theirs.load_state_dict({theirs_name(name): value.reshape(_shape(name, value)) for name, value in ours.state_dict().items()})
    x_BND = torch.randn(2, 15, 24)
    mine_BND, other_BND = ours(x_BND, context=BlockContext(grid=Grid(3, 5), num_prefix=0)), theirs(x_BND, 3, 5)
    assert (mine_BND - other_BND).abs().max() <= 2e-6
    weight_BND = torch.randn(mine_BND.shape)
    for y_BND in (mine_BND, other_BND):
        (y_BND * weight_BND).sum().backward()
    for name, parameter in ours.named_parameters():
        expected = theirs.get_parameter(theirs_name(name)).grad.reshape(parameter.shape)
        assert (parameter.grad - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def _shape(name: str, value: torch.Tensor) -> tuple[int, ...]:
    return (3, 1, 1) if name == "attn.temperature" else tuple(value.shape)


def test_each_of_three_branches_is_dropped_by_sample() -> None:
    block = materialise(MixingBlock(SPEC, index=0), seed=0)
    x_BND, none = torch.randn(2, 4, 24), torch.tensor([], dtype=torch.long)
    grid = Grid(2, 2)
    kept = BlockContext(grid=grid, num_prefix=0, seed_B=torch.tensor([1, 2]), kept=(none, none, none))
    assert torch.equal(block(x_BND, context=kept), x_BND)
    only_mlp = BlockContext(grid=grid, num_prefix=0, seed_B=torch.tensor([1, 2]), kept=(none, none, torch.tensor([1])))
    changed = (block(x_BND, context=only_mlp) != x_BND).any(dim=(1, 2))
    assert changed.tolist() == [False, True]
