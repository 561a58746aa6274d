"""Multi-head self-attention with one fused projection and torch's fused attention kernel."""

# B batch, N tokens, D width, H heads, K head width

import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.nn.init import xavier_uniform
from vitscale.nn.layers import linear


class Attention(nn.Module):
    """Softmax attention of every token to every token (Vaswani et al. 2017), scores never materialised by fused kernels.

    The rows of `qkv.weight` (3D, D) are the query, key and value projections, heads in order within each, as in timm.
    """

    def __init__(self, *, width: int, num_heads: int) -> None:
        super().__init__()
        assert width % num_heads == 0, f"width {width} is not a multiple of {num_heads} heads"
        self.num_heads = num_heads
        self.qkv = linear(in_width=width, out_width=3 * width, weight=xavier_uniform(stack=3))
        self.proj = linear(in_width=width, out_width=width, weight=xavier_uniform())

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        # Unbinding where the projection wrote them lets backward join the three gradients in place, without a second copy.
        q_BNHK, k_BNHK, v_BNHK = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        mixed_BHNK = F.scaled_dot_product_attention(q_BNHK.transpose(1, 2), k_BNHK.transpose(1, 2), v_BNHK.transpose(1, 2))
        projected_BND: Tensor = self.proj(mixed_BHNK.transpose(1, 2).flatten(2))
        return projected_BND
