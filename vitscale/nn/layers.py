"""Linear layers, norms and layer scale whose parameters carry their init recipe."""

# D width

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.nn.init import Init, constant, set_init, zeros

NormKind = Literal["layer", "rms"]
"""layer: LayerNorm (Ba et al. 2016). rms: RMSNorm, which neither centres nor shifts (Zhang and Sennrich 2019)."""


def linear(*, in_width: int, out_width: int, weight: Init, bias: Init | None = None, has_bias: bool = True) -> nn.Linear:
    """A linear layer; its bias, where it has one, starts from zeros unless told."""
    layer = nn.Linear(in_width, out_width, bias=has_bias)
    set_init(layer.weight, weight)
    if has_bias:
        set_init(layer.bias, bias or zeros())
    return layer


def layer_norm(width: int, *, eps: float) -> nn.LayerNorm:
    """Layer normalisation over the last dimension, starting as the identity's scale and shift."""
    layer = nn.LayerNorm(width, eps=eps)
    set_init(layer.weight, constant(1.0))
    set_init(layer.bias, zeros())
    return layer


def norm_layer(kind: NormKind, *, width: int, eps: float) -> nn.Module:
    """The norm of that kind over the last dimension, starting as plain normalisation."""
    if kind == "layer":
        return layer_norm(width, eps=eps)
    layer = nn.RMSNorm(width, eps=eps)
    set_init(layer.weight, constant(1.0))
    return layer


class LayerScale(nn.Module):
    """A learned factor for every channel (Touvron et al. 2021, CaiT), started from `init` everywhere."""

    def __init__(self, width: int, *, init: float) -> None:
        super().__init__()
        self.gamma = set_init(nn.Parameter(torch.empty(width)), constant(init))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return x * self.gamma


class QkvWithoutKeyBias(nn.Module):
    """The query, key and value projections as one matrix (3D, D), with biases of queries and values only.

    A key's bias adds the same to all scores of a query, which softmax ignores: BEiT, SwinV2 and EVA-02 have none, DINOv3 masks it.
    """

    def __init__(self, width: int, *, weight: Init) -> None:
        super().__init__()
        self.weight = set_init(nn.Parameter(torch.empty(3 * width, width)), weight)
        self.q_bias = set_init(nn.Parameter(torch.empty(width)), zeros())
        self.v_bias = set_init(nn.Parameter(torch.empty(width)), zeros())

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., 3D)."""
        return F.linear(x, self.weight, torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]))
