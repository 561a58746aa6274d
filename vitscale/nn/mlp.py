"""The two-layer perceptron of a transformer block."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vitscale.nn.init import normal, xavier_uniform
from vitscale.nn.layers import linear

Gelu = Literal["exact", "tanh"]
"""exact: x Phi(x) by erf (timm, Hugging Face). tanh: its approximation, flax's default (big_vision, vit_jax)."""


class Mlp(nn.Module):
    """Linear, GELU, linear. Biases start from a tiny normal, as in big_vision's MlpBlock."""

    def __init__(self, *, width: int, hidden_width: int, gelu: Gelu) -> None:
        super().__init__()
        self.approximate = "none" if gelu == "exact" else "tanh"
        self.fc1 = linear(in_width=width, out_width=hidden_width, weight=xavier_uniform(), bias=normal(1e-6))
        self.fc2 = linear(in_width=hidden_width, out_width=width, weight=xavier_uniform(), bias=normal(1e-6))

    def forward(self, x_BND: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        y_BND: Tensor = self.fc2(F.gelu(self.fc1(x_BND), approximate=self.approximate))
        return y_BND
