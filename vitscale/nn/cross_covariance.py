"""Attention between channels instead of tokens, whose cost is linear in the number of tokens."""

# B batch, N tokens, D width, H heads, K head width

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.nn.attention import QkvBias, qkv_projection
from vitscale.nn.context import BlockContext
from vitscale.nn.init import constant, set_init, xavier_uniform
from vitscale.nn.layers import linear

AttentionKind = Literal["softmax", "cross_covariance"]
"""softmax: between tokens. cross_covariance: between channels."""


class CrossCovarianceAttention(nn.Module):
    """Every channel of a head becomes a mixture of the head's channels, by how alike they are over all tokens (XCiT, El-Nouby et al.
    2021, section 3.2; facebookresearch/xcit, xcit.py).

    Queries and keys are brought to length 1 along the tokens, so that a learned temperature per head is all that sets the scale of
    the scores. From token to token nothing passes but through these K x K weights.
    """

    def __init__(self, *, width: int, num_heads: int, qkv_bias: QkvBias, proj_bias: bool) -> None:
        super().__init__()
        assert width % num_heads == 0, f"width {width} is not a multiple of {num_heads} heads"
        self.num_heads = num_heads
        self.temperature = set_init(nn.Parameter(torch.empty(num_heads)), constant(1.0))
        self.qkv = qkv_projection(width, bias=qkv_bias)
        self.proj = linear(in_width=width, out_width=width, weight=xavier_uniform(), has_bias=proj_bias)

    def forward(self, x_BND: Tensor, *, context: BlockContext) -> Tensor:
        """(B, N, D), patches only, to (B, N, D)."""
        assert not context.num_prefix, "a prefix token would see nothing of the patches"
        q_BHKN, k_BHKN, v_BHKN = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 4, 1).unbind(0)
        scores_BHKK = F.normalize(q_BHKN, dim=-1) @ F.normalize(k_BHKN, dim=-1).transpose(-2, -1)
        weights_BHKK = (scores_BHKK * self.temperature.view(-1, 1, 1)).softmax(dim=-1)
        mixed_BND = (weights_BHKK @ v_BHKN).permute(0, 3, 1, 2).flatten(2)
        projected_BND: Tensor = self.proj(mixed_BND)
        return projected_BND
