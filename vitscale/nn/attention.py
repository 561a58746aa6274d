"""Multi-head self-attention with one fused projection and torch's fused attention kernel."""

# B batch, N tokens, D width, H heads, K head width, W windows, M tokens of a window

from typing import Literal, NamedTuple

from torch import Tensor, nn

from vitscale.nn.biased_attention import biased_attention
from vitscale.nn.context import BlockContext
from vitscale.nn.decomposed_bias import DecomposedBias
from vitscale.nn.init import xavier_uniform
from vitscale.nn.layers import NormKind, QkvWithoutKeyBias, linear, norm_layer
from vitscale.nn.position_bias import PositionBias
from vitscale.nn.resample import Grid
from vitscale.nn.rope import MixedRope, Rotation, rotate
from vitscale.nn.windows import Windows

QkvBias = Literal["all", "no_key", "none"]
"""Which of the query, key and value projections have a bias: all, all but the keys', none."""


class Heads(NamedTuple):
    """Queries, keys and values (B, N, H, K)."""

    q_BNHK: Tensor
    k_BNHK: Tensor
    v_BNHK: Tensor


class Attention(nn.Module):
    """Softmax attention of every token to every token (Vaswani et al. 2017), scores never materialised by fused kernels.

    The rows of `qkv.weight` (3D, D) are the query, key and value projections, heads in order within each, as in timm. `qk_norm`
    normalises queries and keys head by head before the dot product (Dehghani et al. 2023). With a `window`, tokens attend to those
    of their window of so many tokens a side; windows at the right and lower border are filled up with zeros that take part as tokens,
    as in ViTDet (Li et al. 2022) and SAM, and there are no prefix tokens.

    Queries and keys are turned by `rope`, or by what the context has for all blocks; `position_bias`, or the context's, is added to the
    scores.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        qkv_bias: QkvBias = "all",
        proj_bias: bool = True,
        qk_norm: NormKind | None = None,
        norm_eps: float = 1e-6,
        window: int | None = None,
        rope: MixedRope | None = None,
        position_bias: PositionBias | None = None,
    ) -> None:
        super().__init__()
        assert width % num_heads == 0, f"width {width} is not a multiple of {num_heads} heads"
        self.num_heads = num_heads
        self.qkv = qkv_projection(width, bias=qkv_bias)
        self.q_norm, self.k_norm = (norm_layer(qk_norm, width=width // num_heads, eps=norm_eps) if qk_norm else None for _ in range(2))
        self.proj = linear(in_width=width, out_width=width, weight=xavier_uniform(), has_bias=proj_bias)
        self.windows = Windows(side=window, shift=0, padding="before_shift") if window else None
        self.rope = rope
        self.position_bias = position_bias

    def forward(self, x_BND: Tensor, *, context: BlockContext) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        if self.windows is None:
            mixed_BND = self._mix(x_BND, context=context, grid=context.grid)
        else:
            assert not context.num_prefix, "prefix tokens lie in no window"
            windows_BWMD = self.windows.cut(x_BND.unflatten(1, context.grid))
            window = Grid(rows=self.windows.side, columns=self.windows.side)
            mixed_BWMD = self._mix(windows_BWMD.flatten(0, 1), context=context, grid=window).unflatten(0, windows_BWMD.shape[:2])
            mixed_BND = self.windows.join(mixed_BWMD, grid=context.grid).flatten(1, 2)
        projected_BND: Tensor = self.proj(mixed_BND)
        return projected_BND

    def heads(self, x_BND: Tensor) -> Heads:
        """(B, N, D) to what the heads compare and mix."""
        # Unbinding where the projection wrote them lets backward join the three gradients in place, without a second copy.
        q_BNHK, k_BNHK, v_BNHK = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BNHK, k_BNHK = self.q_norm(q_BNHK), self.k_norm(k_BNHK)
        return Heads(q_BNHK, k_BNHK, v_BNHK)

    def _mix(self, x_BND: Tensor, *, context: BlockContext, grid: Grid) -> Tensor:
        q_BNHK, k_BNHK, v_BNHK = self.heads(x_BND)
        q_BHNK, k_BHNK = q_BNHK.transpose(1, 2), k_BNHK.transpose(1, 2)
        bias_BHNN = self._bias(q_BHNK, context=context, grid=grid)
        rotation = self._rotation(q_BHNK, context=context, grid=grid)
        if rotation is not None:
            q_BHNK, k_BHNK = rotate(q_BHNK, rotation), rotate(k_BHNK, rotation)
        mixed_BHNK = biased_attention(q_BHNK, k_BHNK, v_BNHK.transpose(1, 2), bias_BHNN=bias_BHNN)
        return mixed_BHNK.transpose(1, 2).flatten(2)

    def _bias(self, q_BHNK: Tensor, *, context: BlockContext, grid: Grid) -> Tensor | None:
        """What is added to the scores, or which keys count."""
        if context.mask_BN is not None:
            return context.mask_BN[:, None, None, :]
        if self.position_bias is None:
            return None if context.bias_HNN is None else context.bias_HNN.unsqueeze(0)
        if isinstance(self.position_bias, DecomposedBias):
            bias_BHNN: Tensor = self.position_bias(q_BHNK, grid=grid, num_prefix=context.num_prefix)
            return bias_BHNN
        bias_HNN: Tensor = self.position_bias(grid=grid, num_prefix=context.num_prefix)
        return bias_HNN.unsqueeze(0)

    def _rotation(self, q_BHNK: Tensor, *, context: BlockContext, grid: Grid) -> Rotation | None:
        if self.rope is None:
            return context.rotation
        rotation: Rotation = self.rope(q_BHNK, grid=grid, num_prefix=context.num_prefix)
        return rotation if context.patches_BP is None else rotation.of_patches(context.patches_BP, num_prefix=context.num_prefix)


def qkv_projection(width: int, *, bias: QkvBias) -> nn.Module:
    """Queries, keys and values (..., 3D) as one matrix product."""
    if bias == "no_key":
        return QkvWithoutKeyBias(width, weight=xavier_uniform(stack=3))
    return linear(in_width=width, out_width=3 * width, weight=xavier_uniform(stack=3), has_bias=bias == "all")
