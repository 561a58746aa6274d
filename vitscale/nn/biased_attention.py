"""Torch's fused attention with something added to the scores, whose gradient is never missing."""

# B batch, H heads, N tokens, K head width

import torch.nn.functional as F
from torch import Tensor


def biased_attention(q_BHNK: Tensor, k_BHNK: Tensor, v_BHNK: Tensor, *, bias_BHNN: Tensor | None, scale: float | None = None) -> Tensor:
    """Mixed values (B, H, N, K); `scale` multiplies the scores before the bias is added (None: by K^-0.5).

    Without images, as where stochastic depth leaves none of a rank's, torch drops the bias from the graph; here its gradient is
    zeros, so that all ranks reduce the same gradients.
    """
    mixed_BHNK = F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK, attn_mask=bias_BHNN, scale=scale)
    if bias_BHNN is None or q_BHNK.shape[0]:
        return mixed_BHNK
    return mixed_BHNK + 0 * bias_BHNN.sum()
