"""Multi-head self-attention within the windows of a feature map, as in Swin (scaled dot products) and SwinV2 (cosines)."""

# B batch, R rows, C columns, D width, W windows, M tokens of a window, H heads, K head width

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.nn.biased_attention import biased_attention
from vitscale.nn.init import constant, normal, set_init
from vitscale.nn.layers import QkvWithoutKeyBias, linear
from vitscale.nn.resample import Grid
from vitscale.nn.windows import Windows

# microsoft/Swin-Transformer draws trunc_normal_(std=0.02), which torch cuts at plus and minus 2: a normal.
MATRIX_INIT = normal(0.02)
_LARGEST_LOG_SCALE = math.log(100.0)


class _Heads(NamedTuple):
    """Queries, keys and values of all windows, and what the dot products are multiplied with (None: K^-0.5)."""

    q_BWMHK: Tensor
    k_BWMHK: Tensor
    v_BWMHK: Tensor
    scale: float | None


class WindowAttention(nn.Module):
    """Softmax attention of every token to those of its window, with a bias per head and relative position (Liu et al. 2021).

    `position_bias(grid=..., num_prefix=0)` gives (H, M, M). The rows of `qkv.weight` (3D, D) are the query, key and value
    projections, heads in order within each, as in microsoft/Swin-Transformer.
    """

    def __init__(self, *, width: int, num_heads: int, windows: Windows, position_bias: nn.Module) -> None:
        super().__init__()
        assert width % num_heads == 0, f"width {width} is not a multiple of {num_heads} heads"
        self.num_heads = num_heads
        self.windows = windows
        self.qkv = self._qkv(width)
        self.position_bias = position_bias
        self.proj = linear(in_width=width, out_width=width, weight=MATRIX_INIT)

    def forward(self, x_BRCD: Tensor) -> Tensor:
        """(B, R, C, D) to (B, R, C, D)."""
        grid = Grid(*x_BRCD.shape[1:3])
        heads = self._heads(self.windows.cut(x_BRCD))
        bias_HMM = self.position_bias(grid=Grid(self.windows.side, self.windows.side), num_prefix=0)
        mask_WMM = self.windows.mask(bias_HMM, grid=grid)
        mixed_BWMD = _attend(heads, bias_HMM=bias_HMM) if mask_WMM is None else _attend_masked(heads, bias_HMM=bias_HMM, mask_WMM=mask_WMM)
        # Token by token, so it comes after the padding of the windows is gone.
        projected_BRCD: Tensor = self.proj(self.windows.join(mixed_BWMD, grid=grid))
        return projected_BRCD

    def _qkv(self, width: int) -> nn.Module:
        return linear(in_width=width, out_width=3 * width, weight=MATRIX_INIT)

    def _heads(self, x_BWMD: Tensor) -> _Heads:
        q_BWMHK, k_BWMHK, v_BWMHK = self.qkv(x_BWMD).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        return _Heads(q_BWMHK, k_BWMHK, v_BWMHK, scale=None)


class CosineWindowAttention(WindowAttention):
    """Window attention by cosines times a learned scale per head, at most 100 (Liu et al. 2022, SwinV2); keys have no bias."""

    def __init__(self, *, width: int, num_heads: int, windows: Windows, position_bias: nn.Module) -> None:
        super().__init__(width=width, num_heads=num_heads, windows=windows, position_bias=position_bias)
        self.logit_scale = set_init(nn.Parameter(torch.empty(num_heads)), constant(math.log(10.0)))

    def _qkv(self, width: int) -> nn.Module:
        return QkvWithoutKeyBias(width, weight=MATRIX_INIT)

    def _heads(self, x_BWMD: Tensor) -> _Heads:
        q_BWMHK, k_BWMHK, v_BWMHK, _ = super()._heads(x_BWMD)
        scale_H1 = self.logit_scale.clamp(max=_LARGEST_LOG_SCALE).exp().unsqueeze(-1)
        return _Heads(F.normalize(q_BWMHK, dim=-1) * scale_H1, F.normalize(k_BWMHK, dim=-1), v_BWMHK, scale=1.0)


def _attend(heads: _Heads, *, bias_HMM: Tensor) -> Tensor:
    """Mixed values (B, W, M, D): windows count as images, so one bias serves them all."""
    q_XHMK, k_XHMK, v_XHMK = (part.flatten(0, 1).transpose(1, 2) for part in heads[:3])
    mixed_XHMK = biased_attention(q_XHMK, k_XHMK, v_XHMK, bias_BHNN=bias_HMM.unsqueeze(0), scale=heads.scale)
    mixed_BWMD: Tensor = mixed_XHMK.transpose(1, 2).flatten(2).unflatten(0, heads.q_BWMHK.shape[:2])
    return mixed_BWMD


def _attend_masked(heads: _Heads, *, bias_HMM: Tensor, mask_WMM: Tensor) -> Tensor:
    """Mixed values (B, W, M, D): windows count as heads, so one mask serves all images and is not copied for each."""
    num_windows, num_heads = mask_WMM.shape[0], bias_HMM.shape[0]
    q_BYMK, k_BYMK, v_BYMK = (part.transpose(2, 3).flatten(1, 2) for part in heads[:3])
    added_1YMM = (bias_HMM + mask_WMM.unsqueeze(1)).flatten(0, 1).unsqueeze(0)
    mixed_BYMK = biased_attention(q_BYMK, k_BYMK, v_BYMK, bias_BHNN=added_1YMM, scale=heads.scale)
    mixed_BWMD: Tensor = mixed_BYMK.unflatten(1, (num_windows, num_heads)).transpose(2, 3).flatten(3)
    return mixed_BWMD
