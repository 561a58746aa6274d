"""Attention of Hiera: within mask units or among all tokens, with queries that may be pooled, and the order of tokens it relies on."""

# B batch, R rows, C columns, U mask units, S tokens of a unit, D width, H heads, K head width, X units or images

import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.nn.init import Init, constant, normal
from vitscale.nn.layers import linear

POOLED_TOKENS = 4
"""Tokens, two by two, that a pooling makes one of."""

# facebookresearch/hiera, hiera.py, `_init_weights`: trunc_normal_(std=0.02), which torch cuts at plus and minus 2, and biases of 0.02.
HIERA_MATRIX: Init = normal(0.02)
HIERA_BIAS: Init = constant(0.02)


def hiera_linear(in_width: int, out_width: int) -> nn.Linear:
    """A linear layer that starts as Hiera's do."""
    return linear(in_width=in_width, out_width=out_width, weight=HIERA_MATRIX, bias=HIERA_BIAS)


def to_units(x_BRCD: Tensor, *, num_poolings: int) -> Tensor:
    """A map (B, R, C, D) as mask units (B, U, S, D) of 2^num_poolings tokens a side, units row by row.

    Within a unit the tokens that the first pooling joins are S / 4 apart, those that the next one joins S / 16, and so on, so that
    every pooling is over a leading dimension (the unrolling of Ryali et al. 2023, which puts units last instead).
    """
    sides = num_poolings * (2,)
    x = x_BRCD.unflatten(2, (-1, *sides)).unflatten(1, (-1, *sides))
    # Of rows and of columns: which unit, then the places in it from the coarsest to the finest.
    rows, columns = range(1, 2 + num_poolings), range(2 + num_poolings, 3 + 2 * num_poolings)
    finest_first = [axis for pair in zip(reversed(rows[1:]), reversed(columns[1:]), strict=True) for axis in pair]
    x = x.permute(0, rows[0], columns[0], *finest_first, -1)
    units_BUSD: Tensor = x.flatten(3, -2).flatten(1, 2) if num_poolings else x.flatten(1, 2).unsqueeze(2)
    return units_BUSD


def pool_units(x: Tensor, *, average: bool = False) -> Tensor:
    """(B, U, S, ...) to (B, U, S / 4, ...): the largest of four neighbours, or their mean."""
    fours = x.unflatten(2, (POOLED_TOKENS, -1))
    pooled: Tensor = fours.mean(dim=2) if average else fours.amax(dim=2)
    return pooled


class UnitAttention(nn.Module):
    """Softmax attention within each mask unit, or among all tokens, from width `in_width` to `width` (Ryali et al. 2023, Hiera).

    `pools` keeps of four neighbouring queries the largest values, and so makes one token of four. The rows of `qkv.weight` are the
    query, key and value projections, heads in order within each.
    """

    def __init__(self, *, in_width: int, width: int, num_heads: int, within_units: bool, pools: bool) -> None:
        super().__init__()
        assert width % num_heads == 0, f"width {width} is not a multiple of {num_heads} heads"
        self.num_heads = num_heads
        self.within_units = within_units
        self.pools = pools
        self.qkv = hiera_linear(in_width, 3 * width)
        self.proj = hiera_linear(width, width)

    def forward(self, x_BUSD: Tensor) -> Tensor:
        """(B, U, S, in_width) to (B, U, S or S / 4, width)."""
        q_BUSHK, k_BUSHK, v_BUSHK = self.qkv(x_BUSD).unflatten(-1, (3, self.num_heads, -1)).unbind(3)
        if self.pools:
            q_BUSHK = pool_units(q_BUSHK)
        # Units count as images, or all units of an image as one.
        joined = (0, 1) if self.within_units else (1, 2)
        q_XHSK, k_XHSK, v_XHSK = (part.flatten(*joined).transpose(1, 2) for part in (q_BUSHK, k_BUSHK, v_BUSHK))
        mixed_XHSK = F.scaled_dot_product_attention(q_XHSK, k_XHSK, v_XHSK)
        mixed_BUSD = mixed_XHSK.transpose(1, 2).flatten(2).unflatten(joined[0], [q_BUSHK.shape[axis] for axis in joined])
        projected_BUSD: Tensor = self.proj(mixed_BUSD)
        return projected_BUSD
