"""From the tokens of the last block to one vector per image."""

# B batch, N tokens, D width, H heads, K head width

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.nn.init import set_init, trunc_normal, xavier_uniform
from vitscale.nn.layers import NormKind, linear, norm_layer
from vitscale.nn.mlp import Gelu, Mlp

Pooling = Literal["cls", "mean", "map", "none"]
"""cls: the class token. mean: the average over all patch tokens. map: attention of a learned query over all tokens (multi-head
attention pooling). none: no vector per image, tokens only."""

NormPlace = Literal["tokens", "pooled"]
"""Where the final norm is: before pooling, or after it (timm's `fc_norm`)."""


def pool_tokens(
    tokens_BND: Tensor,
    *,
    norm: nn.Module,
    pooling: Literal["cls", "mean"],
    norm_place: NormPlace = "tokens",
    num_prefix: int = 0,
    sizes_BN: Tensor | None = None,
) -> Tensor:
    """(B, N, D) to (B, D): the class token or the mean of the tokens after the prefix, normalised before or after.

    `sizes_BN` says how many patches each token stands for; the mean is that over the patches.

    Norm, then mean is big_vision's `pool_type` gap; mean, then norm is timm's `fc_norm`, another function.
    """
    if pooling == "cls":
        # Norms work token by token: only the token that is used is normalised.
        class_BD: Tensor = norm(tokens_BND[:, 0])
        return class_BD
    patches_BND = tokens_BND[:, num_prefix:] if num_prefix else tokens_BND
    sizes_BN = None if sizes_BN is None else sizes_BN[:, num_prefix:]
    if norm_place == "pooled":
        normed_BD: Tensor = norm(_mean(patches_BND, sizes_BN=sizes_BN))
        return normed_BD
    return _mean(norm(patches_BND), sizes_BN=sizes_BN)


def _mean(x_BND: Tensor, *, sizes_BN: Tensor | None) -> Tensor:
    if sizes_BN is None:
        return x_BND.mean(dim=1)
    weight_BN1 = (sizes_BN / sizes_BN.sum(dim=1, keepdim=True)).to(x_BND.dtype).unsqueeze(-1)
    return (x_BND * weight_BN1).sum(dim=1)


class AttentionPool(nn.Module):
    """A learned query attends to all tokens; then `x + mlp(norm(x))` (Zhai et al. 2022, appendix; Lee et al. 2019).

    big_vision's MAPHead, with the names of timm's AttentionPoolLatent. The rows of `kv.weight` (2D, D) are keys, then values.
    """

    def __init__(self, *, width: int, num_heads: int, mlp_width: int, gelu: Gelu, norm: NormKind, norm_eps: float) -> None:
        super().__init__()
        assert width % num_heads == 0, f"width {width} is not a multiple of {num_heads} heads"
        self.num_heads = num_heads
        self.latent = set_init(nn.Parameter(torch.empty(1, 1, width)), trunc_normal(width**-0.5))
        self.q = linear(in_width=width, out_width=width, weight=xavier_uniform())
        self.kv = linear(in_width=width, out_width=2 * width, weight=xavier_uniform(stack=2))
        self.proj = linear(in_width=width, out_width=width, weight=xavier_uniform())
        self.norm = norm_layer(norm, width=width, eps=norm_eps)
        self.mlp = Mlp(width=width, hidden_width=mlp_width, gelu=gelu)

    def forward(self, tokens_BND: Tensor, *, sizes_BN: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, D); a token draws attention by the number of patches that it stands for."""
        # The query is the same for every image, so it is projected once.
        q_11HK = self.q(self.latent).unflatten(-1, (self.num_heads, -1))
        q_BH1K = q_11HK.transpose(1, 2).expand(tokens_BND.shape[0], -1, -1, -1)
        k_BNHK, v_BNHK = self.kv(tokens_BND).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        bias_B11N = log_sizes(sizes_BN, like=tokens_BND)
        mixed_BH1K = F.scaled_dot_product_attention(q_BH1K, k_BNHK.transpose(1, 2), v_BNHK.transpose(1, 2), attn_mask=bias_B11N)
        x_BD = self.proj(mixed_BH1K.flatten(1))
        pooled_BD: Tensor = x_BD + self.mlp(self.norm(x_BD))
        return pooled_BD


def log_sizes(sizes_BN: Tensor | None, *, like: Tensor) -> Tensor | None:
    """What is added to attention scores (B, H, N, N), so that softmax weighs a token as so many equal ones."""
    return None if sizes_BN is None else sizes_BN.log().to(like.dtype)[:, None, None]
