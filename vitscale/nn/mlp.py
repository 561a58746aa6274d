"""The perceptron of a transformer block: two layers with GELU, or gated by SiLU."""

# N tokens, D width, M hidden width

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.nn.dropout import Dropout
from vitscale.nn.init import normal, xavier_uniform
from vitscale.nn.layers import NormKind, linear, norm_layer

Gelu = Literal["exact", "tanh", "quick"]
"""exact: x Phi(x) by erf (timm, Hugging Face). tanh: its approximation, flax's default (big_vision, vit_jax). quick: x sigmoid(1.702 x)
(OpenAI's CLIP)."""

_QUICK = 1.702

MlpKind = Literal["gelu", "swiglu", "swiglu64"]
"""gelu: two matrices. swiglu, swiglu64: gated, three matrices (Shazeer 2020), with a hidden width that is a multiple of 8 or of 64."""

NO_DROPOUT = Dropout(rate=0.0, site=0)


class Mlp(nn.Module):
    """Linear, GELU, linear; gated: `fc2(silu(gate) * value)`. Biases start from a tiny normal, as in big_vision's MlpBlock.

    Gated, the rows of `fc1` (2M, D) are the gate, then the value, as in DINOv2's packed `w12`; layouts with two matrices (DINOv3,
    EVA-02, Hugging Face) hold the halves of it. `hidden_norm` normalises the hidden values before the last layer, as EVA-02 does
    (`norm` in timm). `dropouts` act on the hidden values and on the result.
    """

    def __init__(
        self,
        *,
        width: int,
        hidden_width: int,
        gelu: Gelu,
        is_gated: bool = False,
        has_bias: bool = True,
        hidden_norm: NormKind | None = None,
        norm_eps: float = 1e-6,
        dropouts: tuple[Dropout, Dropout] = (NO_DROPOUT, NO_DROPOUT),
    ) -> None:
        super().__init__()
        self.is_gated = is_gated
        self.gelu = gelu
        self.dropouts = dropouts
        num_stacked = 2 if is_gated else 1
        self.fc1 = linear(
            in_width=width,
            out_width=num_stacked * hidden_width,
            weight=xavier_uniform(stack=num_stacked),
            bias=normal(1e-6),
            has_bias=has_bias,
        )
        self.norm = norm_layer(hidden_norm, width=hidden_width, eps=norm_eps) if hidden_norm else None
        self.fc2 = linear(in_width=hidden_width, out_width=width, weight=xavier_uniform(), bias=normal(1e-6), has_bias=has_bias)

    def forward(self, x_BND: Tensor, *, seed_B: Tensor | None = None) -> Tensor:
        """(..., D) to (..., D). Drops values where there are seeds."""
        hidden_BNM = self.dropouts[0](self._hidden(x_BND), seed_B=seed_B)
        if self.norm is not None:
            hidden_BNM = self.norm(hidden_BNM)
        return self.dropouts[1](self.fc2(hidden_BNM), seed_B=seed_B)

    def _hidden(self, x_BND: Tensor) -> Tensor:
        if not self.is_gated:
            return _gelu(self.fc1(x_BND), kind=self.gelu)
        gate_BNM, value_BNM = self.fc1(x_BND).chunk(2, dim=-1)
        gated_BNM: Tensor = F.silu(gate_BNM) * value_BNM
        return gated_BNM


def _gelu(x: Tensor, *, kind: Gelu) -> Tensor:
    if kind == "quick":
        # As silu, so that one tensor is kept for backward, as with the other two.
        return F.silu(_QUICK * x) / _QUICK
    return F.gelu(x, approximate="none" if kind == "exact" else "tanh")


def gated_width(width: int, *, kind: MlpKind) -> int:
    """The hidden width of a gated MLP with about the weights of a plain one of hidden width `width`: two thirds of it, rounded
    up to a multiple of 8 (facebookresearch/dinov2, `SwiGLUFFNFused`) or of 64 (facebookresearch/dinov3, `swiglu64`)."""
    multiple = 64 if kind == "swiglu64" else 8
    return -(-int(width * 2 / 3) // multiple) * multiple
