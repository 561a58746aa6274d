"""Starting a model from another one's weights: which tensor is loaded, resampled, replaced or dropped, and its new value.

Planning looks at names, shapes and grids only, so it is done, printed and refused before a byte of weights is read.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitscale.config import CheckpointError, Config
from vitscale.nn.resample import Grid, PositionMode, resample_positions
from vitscale.weights.patch_kernel import resample_patch_kernel

BACKBONE = "backbone."
CLASS_TOKEN = f"{BACKBONE}cls_token"
POSITIONS = f"{BACKBONE}pos_embed"
PATCH_KERNEL = f"{BACKBONE}patch_embed.weight"

Shape = tuple[int, ...]
Action = Literal["loaded", "resampled", "replaced", "initialised", "dropped"]
"""loaded: the source's value. resampled: the source's value, fitted to another grid. replaced: in both models, but started
afresh. initialised: in the new model only. dropped: in the source only."""

_SHOWN_PROBLEMS = 8


class InitFromConfig(Config):
    """Weights to start from instead of random ones (fine-tuning, another resolution, another patch size)."""

    path: str
    """A run directory (its newest complete checkpoint is taken) or the folder of one checkpoint."""
    weights: Literal["model", "ema"] = "model"
    """Which of its weights: the trained ones or their moving average."""
    positions: PositionMode = "google"
    """How position embeddings are resampled to another grid: as in vit_jax and big_vision (bilinear, corners aligned), as
    in timm (bicubic, antialiased) or as in Hugging Face transformers (bicubic)."""
    head: Literal["auto", "keep", "replace"] = "auto"
    """The head, that is everything outside the backbone: keep the source's, replace it by a fresh one, or auto: keep it
    where every tensor of it fits."""


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """How a model cuts an image into tokens, which the shapes of its weights do not tell."""

    grid: Grid
    patch_size: int
    num_channels: int
    class_token: bool


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What planning needs to know of a model: the shape of every tensor by name, and its token layout."""

    shapes: Mapping[str, Shape]
    layout: TokenLayout


@dataclass(frozen=True, kw_only=True)
class Row:
    """What happens to one tensor. The shape is None in the model that lacks it."""

    name: str
    action: Action
    source_shape: Shape | None
    target_shape: Shape | None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class TransferPlan:
    """What happens to every tensor of either model, in the target's order, what is dropped last."""

    rows: tuple[Row, ...]
    source: TokenLayout
    target: TokenLayout
    positions: PositionMode

    def value(self, name: str, *, read: Callable[[str], Tensor]) -> Tensor | None:
        """The fp32 value that the target's tensor starts from; None where it starts afresh, by its own recipe.

        `read` gets the source's whole tensor by name and is called for what is used only.
        """
        row = next(row for row in self.rows if row.name == name)
        return transferred_value(row, read(name), plan=self) if row.action in ("loaded", "resampled") else None


def plan_transfer(config: InitFromConfig, *, source: ModelFacts, target: ModelFacts) -> TransferPlan:
    """Decide for every tensor. Raises `CheckpointError` listing what does not fit, with the first mismatches in full."""
    rows = [*_backbone_rows(source, target=target, config=config), *_head_rows(config, source=source, target=target)]
    problems = list(_problems(rows, source=source.layout, target=target.layout))
    if problems:
        raise CheckpointError(_refusal(config, problems))
    order = {name: index for index, name in enumerate([*target.shapes, *source.shapes])}
    rows.sort(key=lambda row: (row.target_shape is None, order[row.name]))
    return TransferPlan(rows=tuple(rows), source=source.layout, target=target.layout, positions=config.positions)


def transferred_value(row: Row, source_value: Tensor, *, plan: TransferPlan) -> Tensor:
    """The target's fp32 value of a loaded or resampled tensor, made of the source's."""
    value = source_value.float()
    if row.action == "resampled":
        value = _resample_positions(value, plan=plan) if row.name == POSITIONS else _resample_kernel(value, plan=plan)
    assert tuple(value.shape) == row.target_shape, f"{row.name}: {tuple(value.shape)}, expected {row.target_shape}"
    return value


def format_table(plan: TransferPlan) -> str:
    """The plan as text for the console: a line for everything but what is loaded unchanged, which is counted."""
    loaded = [row for row in plan.rows if row.action == "loaded"]
    others = [row for row in plan.rows if row.action != "loaded"]
    num_elements = sum(torch.Size(row.target_shape or ()).numel() for row in loaded)
    lines = [("action", "tensor", "source", "here", "")]
    lines += [(row.action, row.name, _shown(row.source_shape), _shown(row.target_shape), row.detail) for row in others]
    lines.append(("loaded", f"{len(loaded)} tensors", "", "", f"{num_elements:,} values, unchanged"))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]).rstrip() for line in lines
    )


def _backbone_rows(source: ModelFacts, *, target: ModelFacts, config: InitFromConfig) -> Iterator[Row]:
    for name in _union(source, target=target, in_backbone=True):
        row = Row(name=name, action="loaded", source_shape=source.shapes.get(name), target_shape=target.shapes.get(name))
        yield _special_row(row, source=source.layout, target=target.layout, config=config) or row


def _special_row(row: Row, *, source: TokenLayout, target: TokenLayout, config: InitFromConfig) -> Row | None:
    """The row of a tensor that may differ between the models, None for all others."""
    if row.name == CLASS_TOKEN and row.source_shape is None:
        return _with(row, action="initialised", detail="the source has no class token")
    if row.name == CLASS_TOKEN and row.target_shape is None:
        return _with(row, action="dropped", detail="this model has no class token")
    if row.source_shape is None or row.target_shape is None:
        return None
    if row.name == POSITIONS and (source.grid, source.class_token) != (target.grid, target.class_token):
        return _with(row, action="resampled", detail=_positions_detail(source, target=target, mode=config.positions))
    if row.name == PATCH_KERNEL and source.patch_size != target.patch_size:
        return _with(row, action="resampled", detail=f"patch {source.patch_size} to {target.patch_size} pixels by PI-resize (FlexiViT)")
    return None


def _positions_detail(source: TokenLayout, *, target: TokenLayout, mode: PositionMode) -> str:
    parts = []
    if source.grid != target.grid:
        parts.append(f"grid {_shown(source.grid)} to {_shown(target.grid)} by mode {mode}")
    if source.class_token != target.class_token:
        parts.append("row of the class token starts at 0" if target.class_token else "row of the class token dropped")
    return ", ".join(parts)


def _head_rows(config: InitFromConfig, *, source: ModelFacts, target: ModelFacts) -> Iterator[Row]:
    """All of the head is kept or none: half of a head, such as a last layer without the layer before it, means nothing."""
    names = _union(source, target=target, in_backbone=False)
    fits = all(source.shapes.get(name) == target.shapes.get(name) for name in names)
    kept = config.head == "keep" or (config.head == "auto" and fits)
    fresh = "asked for by init_from.head" if config.head == "replace" else "the heads differ"
    for name in names:
        row = Row(name=name, action="loaded", source_shape=source.shapes.get(name), target_shape=target.shapes.get(name))
        if kept:
            yield row
        elif row.target_shape is None:
            yield _with(row, action="dropped", detail=fresh)
        else:
            yield _with(row, action="initialised" if row.source_shape is None else "replaced", detail=fresh)


def _problems(rows: list[Row], *, source: TokenLayout, target: TokenLayout) -> Iterator[str]:
    if source.num_channels != target.num_channels:
        yield f"model.num_channels: {source.num_channels} in the source, {target.num_channels} here"
    for row in rows:
        if row.action == "loaded" and row.source_shape != row.target_shape:
            if row.name == PATCH_KERNEL and source.num_channels != target.num_channels:
                continue
            yield f"{row.name}: {_shown(row.source_shape)} in the source, {_shown(row.target_shape)} here"
        elif row.action == "resampled" and _width(row.name, row.source_shape) != _width(row.name, row.target_shape):
            yield f"{row.name}: {_shown(row.source_shape)} in the source, {_shown(row.target_shape)} here"


def _width(name: str, shape: Shape | None) -> int:
    """The model width in the shape of positions (1, N, D) or of a patch kernel (D, C*P*P)."""
    assert shape is not None, name
    return shape[-1] if name == POSITIONS else shape[0]


def _refusal(config: InitFromConfig, problems: list[str]) -> str:
    count = f"{len(problems)} difference{'s' if len(problems) > 1 else ''}"
    shown = [f"  {problem}" for problem in problems[:_SHOWN_PROBLEMS]]
    more = [f"  ... and {len(problems) - _SHOWN_PROBLEMS} more"] if len(problems) > _SHOWN_PROBLEMS else []
    head = " With init_from.head 'auto' a head that differs is replaced." if config.head == "keep" else ""
    remedy = (
        "Give this model the width, depth, MLP width, channels and kind of positions of the source; image size, patch size,"
        f" class token and head may differ.{head}"
    )
    return "\n".join([f"init_from.path {config.path}: its weights do not fit this model ({count}):", *shown, *more, remedy])


def _resample_positions(value: Tensor, *, plan: TransferPlan) -> Tensor:
    source, target = plan.source, plan.target
    table_1ND = resample_positions(value, source=source.grid, target=target.grid, num_prefix=int(source.class_token), mode=plan.positions)
    if source.class_token and not target.class_token:
        return table_1ND[:, 1:]
    if target.class_token and not source.class_token:
        return torch.cat([torch.zeros_like(table_1ND[:, :1]), table_1ND], dim=1)
    return table_1ND


def _resample_kernel(value: Tensor, *, plan: TransferPlan) -> Tensor:
    return resample_patch_kernel(value, num_channels=plan.source.num_channels, source=plan.source.patch_size, target=plan.target.patch_size)


def _union(source: ModelFacts, *, target: ModelFacts, in_backbone: bool) -> list[str]:
    """Names of either model, in the target's order, without repeats."""
    names = dict.fromkeys([*target.shapes, *source.shapes])
    return [name for name in names if name.startswith(BACKBONE) == in_backbone]


def _with(row: Row, *, action: Action, detail: str) -> Row:
    return Row(name=row.name, action=action, source_shape=row.source_shape, target_shape=row.target_shape, detail=detail)


def _shown(shape: Shape | None) -> str:
    if shape is None:
        return "-"
    return " x ".join(str(size) for size in shape) if shape else "scalar"
