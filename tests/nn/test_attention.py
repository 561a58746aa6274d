import torch
from torch import nn

from vitscale.nn.attention import Attention
from vitscale.nn.init import materialise


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
    torch.testing.assert_close(ours(x_BND), theirs(x_BND, x_BND, x_BND, need_weights=False)[0])


def test_tokens_are_permuted_with_the_input() -> None:
    attention = materialise(Attention(width=8, num_heads=2), seed=0)
    x_BND, order = torch.randn(1, 6, 8), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(attention(x_BND[:, order]), attention(x_BND)[:, order])


def test_starts_as_three_separate_glorot_matrices() -> None:
    weight = materialise(Attention(width=64, num_heads=2), seed=0).qkv.weight
    bound = (6 / 128) ** 0.5  # of a (64, 64) matrix; the fused (192, 64) one would be drawn within 0.15
    for part in weight.chunk(3):
        assert 0.98 * bound < part.abs().max() <= bound
