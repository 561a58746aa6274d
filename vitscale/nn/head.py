"""The classification head: an optional tanh layer, then a linear layer that starts from zero weights."""

# B batch, D width, R pre-logits width, K classes

import torch
from torch import Tensor, nn

from vitscale.nn.init import constant, lecun_normal, zeros
from vitscale.nn.layers import linear


class ClassificationHead(nn.Module):
    """Pooled features to logits. `pre_logits_width` inserts a linear layer with tanh, as the released vit_jax models for
    pre-training have; `bias_init` is where every class bias starts."""

    def __init__(self, *, width: int, num_classes: int, pre_logits_width: int | None, bias_init: float) -> None:
        super().__init__()
        self.pre_logits: nn.Linear | None = None
        if pre_logits_width is not None:
            self.pre_logits = linear(in_width=width, out_width=pre_logits_width, weight=lecun_normal(width))
        self.fc = linear(in_width=pre_logits_width or width, out_width=num_classes, weight=zeros(), bias=constant(bias_init))

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """(B, D) to logits (B, K)."""
        features_BR = pooled_BD if self.pre_logits is None else torch.tanh(self.pre_logits(pooled_BD))
        logits_BK: Tensor = self.fc(features_BR)
        return logits_BK
