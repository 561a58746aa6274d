import pytest
import torch
from torch import nn

from vitscale.nn.attention import Attention
from vitscale.nn.context import BlockContext
from vitscale.nn.init import materialise
from vitscale.nn.resample import Grid

CONTEXT = BlockContext(grid=Grid(1, 1), num_prefix=0)


def test_equals_torchs_multihead_attention() -> None:
    ours = materialise(Attention(width=24, num_heads=3), seed=0)
    theirs = nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.proj.weight)
        theirs.out_proj.bias.copy_(ours.proj.bias)
    x_BND = torch.randn(2, 5, 24)
    torch.testing.assert_close(ours(x_BND, context=CONTEXT), theirs(x_BND, x_BND, x_BND, need_weights=False)[0])


def test_tokens_are_permuted_with_the_input() -> None:
    attention = materialise(Attention(width=8, num_heads=2), seed=0)
    x_BND, order = torch.randn(1, 6, 8), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(attention(x_BND[:, order], context=CONTEXT), attention(x_BND, context=CONTEXT)[:, order])


def test_starts_as_three_separate_glorot_matrices() -> None:
    weight = materialise(Attention(width=64, num_heads=2), seed=0).qkv.weight
    bound = (6 / 128) ** 0.5  # of a (64, 64) matrix; the fused (192, 64) one would be drawn within 0.15
    for part in weight.chunk(3):
        assert 0.98 * bound < part.abs().max() <= bound


def test_without_a_key_bias_equals_a_zero_one() -> None:
    ours = materialise(Attention(width=24, num_heads=3, qkv_bias="no_key"), seed=0)
    whole = materialise(Attention(width=24, num_heads=3), seed=0)
    with torch.no_grad():
        ours.qkv.q_bias.normal_()
        ours.qkv.v_bias.normal_()
        whole.qkv.bias.copy_(torch.cat([ours.qkv.q_bias, torch.zeros(24), ours.qkv.v_bias]))
    x_BND = torch.randn(2, 5, 24)
    assert torch.equal(whole.qkv.weight, ours.qkv.weight)
    torch.testing.assert_close(ours(x_BND, context=CONTEXT), whole(x_BND, context=CONTEXT))


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_qk_norm_bounds_the_scores(norm: str) -> None:
    attention = materialise(Attention(width=8, num_heads=2, qk_norm=norm), seed=0)
    x_BND = torch.randn(1, 6, 8)
    with torch.no_grad():
        before = attention(x_BND, context=CONTEXT)
        attention.qkv.weight[:16] *= 100  # queries and keys, not values
        torch.testing.assert_close(attention(x_BND, context=CONTEXT), before, rtol=1e-3, atol=1e-4)


def test_windows_are_attention_of_each_window_alone() -> None:
    whole, windowed = (materialise(Attention(width=8, num_heads=2, window=window), seed=0) for window in (None, 3))
    image_BRCD = torch.randn(2, 5, 6, 8)
    context = BlockContext(grid=Grid(5, 6), num_prefix=0)
    found_BRCD = windowed(image_BRCD.flatten(1, 2), context=context).unflatten(1, (5, 6))
    # The lower windows have two rows of the image and one of zeros.
    padded_BRCD = torch.nn.functional.pad(image_BRCD, (0, 0, 0, 0, 0, 1))
    for row in (0, 3):
        for column in (0, 3):
            window_BND = padded_BRCD[:, row : row + 3, column : column + 3].flatten(1, 2)
            expected_BRCD = whole(window_BND, context=context).unflatten(1, (3, 3))[:, : 5 - row]
            torch.testing.assert_close(found_BRCD[:, row : row + 3, column : column + 3], expected_BRCD)
