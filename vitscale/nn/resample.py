"""Resampling learned position embeddings to another grid, by the named conventions of the systems that models come from.

The mode is part of what a model means: the same table resampled by two modes gives two different models. Every system has a
name of its own, also where two of them do the same: the name that is stored with weights says where they come from, and what
it does can be read off `POSITION_MODES`.
"""

# P prefix tokens, N tokens, D width

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PositionMode = Literal[
    "google", "timm", "timm_npz", "hf", "mae", "deit", "beit", "dinov2", "dinov2_reg", "open_clip", "siglip2", "naflex", "flexivit",
    "pe", "swin",
]  # fmt: skip
"""Whose way of resampling; what each does is told in docs/resampling.md."""

RelativeRule = Literal["geometric_cubic", "geometric_linear", "bicubic", "bilinear"]
"""How a table of relative positions is resampled: on a grid whose spacing grows from the centre by a constant factor, so that
near positions keep their values (BEiT), with cubic splines or straight lines, or evenly."""


class Grid(NamedTuple):
    """Patches of an image, as rows x columns."""

    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class Interpolation:
    """Arguments of `torch.nn.functional.interpolate`. An `offset` other than 0 gives it scale factors, made of the target's sides
    plus that offset, instead of a size, which places the samples a little closer together."""

    mode: Literal["bilinear", "bicubic"]
    align_corners: bool = False
    antialias: bool = False
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ModeRules:
    """What a mode does with a table of absolute positions and with one of relative positions; None: the system has none."""

    absolute: Interpolation
    relative: RelativeRule | None = None


_BICUBIC = Interpolation(mode="bicubic")
_BICUBIC_ANTIALIASED = Interpolation(mode="bicubic", antialias=True)
_BILINEAR = Interpolation(mode="bilinear")
_BILINEAR_ANTIALIASED = Interpolation(mode="bilinear", antialias=True)

POSITION_MODES: dict[PositionMode, ModeRules] = {
    # google-research/vision_transformer and big_vision, scenic: scipy.ndimage.zoom(order=1), which aligns the corners.
    "google": ModeRules(absolute=Interpolation(mode="bilinear", align_corners=True)),
    # huggingface/pytorch-image-models, layers/pos_embed.py and layers/pos_embed_rel.py (its default, without scipy).
    "timm": ModeRules(absolute=_BICUBIC_ANTIALIASED, relative="geometric_linear"),
    # The same, models/vision_transformer.py, where it reads Google's .npz files.
    "timm_npz": ModeRules(absolute=_BILINEAR),
    # huggingface/transformers, `interpolate_pos_encoding` of ViT, DeiT, MAE, DINOv2, BEiT, Swin and SigLIP; the relative table
    # is BEiT's.
    "hf": ModeRules(absolute=_BICUBIC, relative="bilinear"),
    # facebookresearch/mae, util/pos_embed.py.
    "mae": ModeRules(absolute=_BICUBIC),
    # facebookresearch/deit, main.py.
    "deit": ModeRules(absolute=_BICUBIC),
    # microsoft/unilm, beit/run_class_finetuning.py.
    "beit": ModeRules(absolute=_BICUBIC, relative="geometric_cubic"),
    # facebookresearch/dinov2, `interpolate_pos_encoding` with interpolate_offset 0.1, and that of its models with registers.
    "dinov2": ModeRules(absolute=Interpolation(mode="bicubic", offset=0.1)),
    "dinov2_reg": ModeRules(absolute=_BICUBIC_ANTIALIASED),
    # mlfoundations/open_clip, `resize_pos_embed`.
    "open_clip": ModeRules(absolute=_BICUBIC_ANTIALIASED),
    # google-research/big_vision, models/proj/image_text/naflex_vit.py; transformers' `resize_positional_embeddings`.
    "siglip2": ModeRules(absolute=_BILINEAR_ANTIALIASED),
    # huggingface/pytorch-image-models, models/naflexvit.py.
    "naflex": ModeRules(absolute=_BICUBIC_ANTIALIASED),
    # google-research/big_vision, models/proj/flexi/vit.py: jax.image.resize, whose linear method is antialiased.
    "flexivit": ModeRules(absolute=_BILINEAR_ANTIALIASED),
    # facebookresearch/perception_models, core/vision_encoder/pe.py.
    "pe": ModeRules(absolute=_BILINEAR),
    # microsoft/Swin-Transformer, utils.py.
    "swin": ModeRules(absolute=_BICUBIC, relative="bicubic"),
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
    resampled_1DRC = _interpolate(grid_1DRC, target=target, how=POSITION_MODES[mode].absolute)
    return torch.cat([prefix_1PD, resampled_1DRC.flatten(2).transpose(1, 2)], dim=1)


def _interpolate(grid_1DRC: Tensor, *, target: Grid, how: Interpolation) -> Tensor:
    if not how.offset:
        return F.interpolate(grid_1DRC, size=tuple(target), mode=how.mode, align_corners=how.align_corners, antialias=how.antialias)
    rows, columns = grid_1DRC.shape[2:]
    factors = ((target.rows + how.offset) / rows, (target.columns + how.offset) / columns)
    resampled_1DRC = F.interpolate(grid_1DRC, scale_factor=factors, mode=how.mode, align_corners=how.align_corners, antialias=how.antialias)
    assert tuple(resampled_1DRC.shape[2:]) == tuple(target), (resampled_1DRC.shape, target)
    return resampled_1DRC
