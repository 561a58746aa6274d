"""Resampling learned position embeddings to another grid, by the named conventions of the systems that models come from.

The mode is part of what a fine-tuned model means: the same table resampled by two modes gives two different models.
"""

# P prefix tokens, N tokens, D width

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PositionMode = Literal["google", "timm", "hf"]
"""google: bilinear with aligned corners, as `scipy.ndimage.zoom(order=1)` does it (google-research/vision_transformer,
big_vision, scenic). timm: bicubic with antialiasing (huggingface/pytorch-image-models, `resample_abs_pos_embed`).
hf: bicubic without it (huggingface/transformers, `interpolate_pos_encoding`; also MAE and DeiT)."""


class Grid(NamedTuple):
    """Patches of an image, as rows x columns."""

    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class _Interpolation:
    mode: str
    align_corners: bool
    antialias: bool


POSITION_MODES: dict[PositionMode, _Interpolation] = {
    "google": _Interpolation(mode="bilinear", align_corners=True, antialias=False),
    "timm": _Interpolation(mode="bicubic", align_corners=False, antialias=True),
    "hf": _Interpolation(mode="bicubic", align_corners=False, antialias=False),
}


def resample_positions(table_1ND: Tensor, *, source: Grid, target: Grid, num_prefix: int, mode: PositionMode) -> Tensor:
    """A table (1, P + rows * columns, D) for the grid `source` as one for the grid `target`, in fp32.

    The rows of the `num_prefix` leading tokens (class token) are kept as they are. A table for the same grid is returned
    unchanged.
    """
    assert table_1ND.shape[:2] == (1, num_prefix + source.rows * source.columns), (table_1ND.shape, source, num_prefix)
    if source == target:
        return table_1ND.float()
    prefix_1PD, grid_1ND = table_1ND.float().split([num_prefix, source.rows * source.columns], dim=1)
    # (1, N, D) to (1, D, rows, columns): channels first, as interpolate wants them.
    grid_1DRC = grid_1ND.transpose(1, 2).unflatten(2, source)
    how = POSITION_MODES[mode]
    resampled_1DRC = F.interpolate(grid_1DRC, size=tuple(target), mode=how.mode, align_corners=how.align_corners, antialias=how.antialias)
    return torch.cat([prefix_1PD, resampled_1DRC.flatten(2).transpose(1, 2)], dim=1)
