"""Log-spaced continuous position bias: SwinV2's small network from the offset of two patches to a bias for every head."""

# H heads, N patch tokens, P prefix tokens, L offsets, M hidden width

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vitscale.config import Config
from vitscale.nn.init import set_init, trunc_normal
from vitscale.nn.layers import linear
from vitscale.nn.relative_bias import offset_bias
from vitscale.nn.resample import Grid

_COORDINATE_SPAN = 8.0
_BIAS_SPAN = 16.0


class LogSpacedBiasConfig(Config):
    """SwinV2's: a small network per block makes the bias from the offset of two patches; pairs with prefix tokens have none."""

    kind: Literal["log_spaced"] = "log_spaced"
    hidden_width: int = Field(default=512, ge=1)
    """Hidden width of the network."""
    pretrained_grid: Annotated[int, Field(ge=1)] | None = None
    """Patches per side, of the image or of a window, in pre-training, in whose units offsets are measured; null: those at hand."""

    def build(self, *, num_heads: int) -> "LogSpacedBias":
        """The network of one block."""
        side = self.pretrained_grid
        return LogSpacedBias(num_heads=num_heads, hidden_width=self.hidden_width, pretrained_grid=Grid(side, side) if side else None)


class LogSpacedBias(nn.Module):
    """`16 sigmoid(fc2(relu(fc1(offset))))` (Liu et al. 2022; microsoft/Swin-Transformer, swin_transformer_v2.py, `cpb_mlp`).

    Offsets are in units of the grid's sides less 1, or of those of `pretrained_grid`, the grid that the network was trained on.
    It has no table, so that every grid can be asked for.
    """

    def __init__(self, *, num_heads: int, hidden_width: int, pretrained_grid: Grid | None) -> None:
        super().__init__()
        self.pretrained_grid = pretrained_grid
        self.fc1 = linear(in_width=2, out_width=hidden_width, weight=trunc_normal(0.02))
        self.fc2 = nn.Linear(hidden_width, num_heads, bias=False)
        set_init(self.fc2.weight, trunc_normal(0.02))

    def forward(self, *, grid: Grid, num_prefix: int) -> Tensor:
        """The bias (H, P + N, P + N), rows of queries: zeros where a prefix token takes part."""
        weight = self.fc1.weight
        offsets_L2 = log_spaced_offsets(grid, unit=self.pretrained_grid or grid, device=weight.device).to(weight.dtype)
        table_LH = _BIAS_SPAN * torch.sigmoid(self.fc2(F.relu(self.fc1(offsets_L2))))
        return F.pad(offset_bias(table_LH, grid=grid), (num_prefix, 0, num_prefix, 0))


def log_spaced_offsets(grid: Grid, *, unit: Grid, device: torch.device) -> Tensor:
    """fp32 (L, 2): every offset between two patches, (query - key) / (side of `unit` - 1), on a logarithmic scale."""
    axes = (
        torch.arange(1 - length, length, dtype=torch.float32, device=device) * (_COORDINATE_SPAN / max(whole - 1, 1))
        for length, whole in zip(grid, unit, strict=True)
    )
    offsets_L2 = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
    return offsets_L2.sign() * torch.log2(1.0 + offsets_L2.abs()) / math.log2(_COORDINATE_SPAN)
