import pytest
import torch
from timm.models.swin_transformer_v2 import WindowAttention

from vitscale.nn.init import materialise
from vitscale.nn.log_spaced_bias import LogSpacedBias
from vitscale.nn.resample import Grid


def random_bias(pretrained_grid: Grid | None) -> LogSpacedBias:
    bias = materialise(LogSpacedBias(num_heads=3, hidden_width=512, pretrained_grid=pretrained_grid), seed=0)
    assert isinstance(bias, LogSpacedBias)
    with torch.no_grad():
        for parameter in bias.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return bias


def their_bias(ours: LogSpacedBias, *, grid: Grid) -> tuple[WindowAttention, torch.Tensor]:
    """timm's network with our weights, and the bias that its forward pass adds: scores without queries are nothing but the bias."""
    theirs = WindowAttention(dim=6, window_size=tuple(grid), num_heads=3, pretrained_window_size=tuple(ours.pretrained_grid or (0, 0)))
    with torch.no_grad():
        theirs.cpb_mlp[0].weight.copy_(ours.fc1.weight)
        theirs.cpb_mlp[0].bias.copy_(ours.fc1.bias)
        theirs.cpb_mlp[2].weight.copy_(ours.fc2.weight)
        theirs.qkv.weight.zero_()
    scores = []
    theirs.softmax.register_forward_pre_hook(lambda _module, inputs: scores.append(inputs[0][0]))
    theirs(torch.zeros(1, grid.rows * grid.columns, 6))
    return theirs, scores[0]


@pytest.mark.parametrize("pretrained_grid", [None, Grid(rows=3, columns=2)])
@pytest.mark.parametrize("grid", [Grid(rows=4, columns=4), Grid(rows=2, columns=5), Grid(rows=1, columns=1)])
def test_equals_timms_swinv2_in_bias_and_gradient(grid: Grid, pretrained_grid: Grid | None) -> None:
    ours = random_bias(pretrained_grid)
    theirs, their_HNN = their_bias(ours, grid=grid)
    our_HNN = ours(grid=grid, num_prefix=0)
    assert our_HNN.shape == their_HNN.shape
    assert (our_HNN - their_HNN).abs().max() <= 5e-6  # of values up to 16
    weight_HNN = torch.randn(our_HNN.shape, generator=torch.Generator().manual_seed(1))
    (our_HNN * weight_HNN).sum().backward()
    (their_HNN * weight_HNN).sum().backward()
    first, _, second = theirs.cpb_mlp
    for mine, other in ((ours.fc1.weight, first.weight), (ours.fc1.bias, first.bias), (ours.fc2.weight, second.weight)):
        assert (mine.grad - other.grad).abs().max() <= 1e-5 * other.grad.abs().max()


def test_prefix_tokens_have_no_bias() -> None:
    bias, grid = random_bias(None), Grid(rows=2, columns=3)
    with_prefix_HNN = bias(grid=grid, num_prefix=2)
    assert torch.equal(with_prefix_HNN[:, 2:, 2:], bias(grid=grid, num_prefix=0))
    assert not with_prefix_HNN[:, :2].any()
    assert not with_prefix_HNN[:, :, :2].any()


def test_is_in_the_type_of_its_parameters_and_works_on_meta() -> None:
    grid = Grid(rows=2, columns=3)
    assert random_bias(None).to(torch.bfloat16)(grid=grid, num_prefix=1).dtype == torch.bfloat16
    with torch.device("meta"):
        assert LogSpacedBias(num_heads=3, hidden_width=16, pretrained_grid=None)(grid=grid, num_prefix=1).shape == (3, 7, 7)
