import pytest
import torch
from timm.layers import RelPosBias
from timm.models.beit import Attention as BeitAttention

from vitscale.nn.init import materialise, normal
from vitscale.nn.relative_bias import RelativeBias
from vitscale.nn.resample import Grid

WIDE = Grid(rows=2, columns=5)


def bias_of(grid: Grid, *, has_prefix: bool) -> RelativeBias:
    bias = materialise(RelativeBias(grid=grid, num_heads=3, has_prefix=has_prefix, init=normal(1.0)), seed=0)
    assert isinstance(bias, RelativeBias)
    return bias


@pytest.mark.parametrize("grid", [Grid(rows=3, columns=3), WIDE])
def test_equals_timms_beit_in_bias_and_gradient(grid: Grid) -> None:
    ours = bias_of(grid, has_prefix=True)
    theirs = BeitAttention(dim=12, num_heads=3, window_size=tuple(grid))
    theirs.relative_position_bias_table.data.copy_(ours.table)
    our_HNN, their_HNN = ours(grid=grid, num_prefix=1), theirs._get_rel_pos_bias()[0]
    assert torch.equal(our_HNN, their_HNN)
    weight_HNN = torch.randn(our_HNN.shape, generator=torch.Generator().manual_seed(0))
    (our_HNN * weight_HNN).sum().backward()
    (their_HNN * weight_HNN).sum().backward()
    torch.testing.assert_close(ours.table.grad, theirs.relative_position_bias_table.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grid", [Grid(rows=4, columns=4), WIDE])
def test_without_prefix_tokens_equals_timms_swin_table(grid: Grid) -> None:
    ours = bias_of(grid, has_prefix=False)
    theirs = RelPosBias(window_size=tuple(grid), num_heads=3)
    theirs.relative_position_bias_table.data.copy_(ours.table)
    assert torch.equal(ours(grid=grid, num_prefix=0), theirs.get_bias()[0])


@pytest.mark.parametrize("target", [Grid(rows=4, columns=4), Grid(rows=3, columns=6)])
def test_at_another_grid_equals_timms_resizing(target: Grid) -> None:
    source = Grid(rows=3, columns=3)
    ours = bias_of(source, has_prefix=True)
    theirs = BeitAttention(dim=12, num_heads=3, window_size=tuple(source))
    theirs.relative_position_bias_table.data.copy_(ours.table)
    theirs.set_window_size(tuple(target))
    our_HNN = ours(grid=target, num_prefix=1)
    assert (our_HNN - theirs._get_rel_pos_bias()[0]).abs().max() <= 2e-6
    our_HNN.sum().backward()
    assert (ours.table.grad != 0).any()


def test_several_prefix_tokens_share_the_three_entries() -> None:
    bias = bias_of(WIDE, has_prefix=True)
    one_HNN, three_HNN = bias(grid=WIDE, num_prefix=1), bias(grid=WIDE, num_prefix=3)
    assert torch.equal(three_HNN[:, 2:, 2:], one_HNN)
    to_patch_H, from_patch_H, within_H = bias.table[-3:]
    assert torch.equal(three_HNN[:, :3, :3], within_H.view(3, 1, 1).expand(3, 3, 3))
    assert torch.equal(three_HNN[:, :3, 3:], to_patch_H.view(3, 1, 1).expand(3, 3, 10))
    assert torch.equal(three_HNN[:, 3:, :3], from_patch_H.view(3, 1, 1).expand(3, 10, 3))


def test_is_in_the_type_of_its_table_on_its_device() -> None:
    bias = bias_of(WIDE, has_prefix=True).to(torch.bfloat16)
    assert bias(grid=WIDE, num_prefix=1).dtype == torch.bfloat16
    assert bias(grid=Grid(rows=4, columns=4), num_prefix=1).dtype == torch.bfloat16
    with torch.device("meta"):
        unfilled = RelativeBias(grid=WIDE, num_heads=3, has_prefix=False, init=normal(1.0))
    assert unfilled(grid=WIDE, num_prefix=0).is_meta
    assert unfilled(grid=WIDE, num_prefix=0).shape == (3, 10, 10)
