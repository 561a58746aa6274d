"""Starting a model from another one's weights: which tensor is loaded, resampled, replaced or dropped, and its new value.

Planning looks at names, shapes and tables of positions only, so it is done, printed and refused before a byte of weights is read.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import ValidationInfo, field_validator
from torch import Tensor

from vitscale.config import CheckpointError, Config
from vitscale.nn.patch_kernel import KernelMode, resample_patch_kernel
from vitscale.nn.position_table import CLASS_ROW, GridTable, OffsetTable, PositionTable, can_fit, describe_fit, fit_table
from vitscale.nn.resample import POSITION_MODES, PositionMode
from vitscale.weights.class_map import read_class_map

BACKBONE = "backbone."
POSITIONS = f"{BACKBONE}pos_embed"
PATCH_KERNEL = f"{BACKBONE}patch_embed.weight"

_ROW_OF_TOKEN = {f"{BACKBONE}cls_token": CLASS_ROW, f"{BACKBONE}dist_token": "distillation"}
"""Tokens that may have a row in the table of positions, and its name there."""
_MAY_COME_AND_GO = {
    **{name: f"{row} token" for name, row in _ROW_OF_TOKEN.items()},
    f"{BACKBONE}reg_token": "register tokens",
    f"{BACKBONE}attn_pool.": "attention pooling",
}
"""What one of the models may be without, by how the names begin."""

_OF_CLASSES = frozenset(f"{head}.fc.{leaf}" for head in ("head", "head_dist") for leaf in ("weight", "bias"))
"""Tensors of a head with a row for each class."""

UNSTORED_MODE: PositionMode = "google"
"""The mode of weights that come without one: checkpoints from before the mode was stored."""

Shape = tuple[int, ...]
Action = Literal["loaded", "resampled", "mapped", "merged", "replaced", "initialised", "dropped"]
"""loaded: the source's value. resampled: the source's value, fitted to another grid. mapped: rows of the source's value, one for each
class. merged: a class or distillation token with its
position added, for a model whose table has no row for it. replaced: in both models, but started afresh. initialised: in the new model only.
dropped: in the source only."""

_SHOWN_PROBLEMS = 8


class InitFromConfig(Config):
    """Weights to start from instead of random ones (fine-tuning, another resolution, another patch size)."""

    path: str
    """A run directory (its newest complete checkpoint is taken) or the folder of one checkpoint."""
    weights: Literal["model", "ema"] = "model"
    """Which of its weights: the trained ones or their moving average."""
    positions: PositionMode | None = None
    """How tables of positions are resampled to another grid or window, by the name of a system, see docs/resampling.md. null: as is
    stored with the weights (their model.resampling), and google where nothing is, in checkpoints from before it was stored."""
    patch_kernel: KernelMode = "timm"
    """How the kernel of the patch embedding is resampled to another patch size, by PI-resize: of patches resized as in timm (bicubic,
    antialiased), or as in FlexiViT's own code (bilinear)."""
    head: Literal["auto", "keep", "replace"] = "auto"
    """The head, that is everything outside the backbone: keep the source's, replace it by a fresh one, or auto: keep it
    where every tensor of it fits."""
    class_map: str | None = None
    """A text file that makes a head for these classes out of the source's: a line for each class, with the number, from 0, of the source's
    class whose weights it gets, as Swin's map22kto1k.txt for ImageNet-1k out of 22k. null: no class has another's weights."""

    @field_validator("class_map")
    @classmethod
    def _a_head_is_kept(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("head", "auto") != "auto":
            raise ValueError(f"init_from.head {info.data['head']} makes no head out of the source's; leave one of the two out")
        return value


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What planning needs to know of a model: the shape of every tensor by name, which of them are tables of positions, the side of
    the kernel that patches are embedded with, in pixels or in positions of its stem's features, and the mode of resampling that is
    stored with it (None: none is)."""

    shapes: Mapping[str, Shape]
    tables: Mapping[str, PositionTable]
    kernel_side: int
    num_channels: int
    resampling: PositionMode | None
    settings: Mapping[str, Any]
    """Settings beside the sizes: they decide what the weights compute, also where no shape shows it."""


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
    source: ModelFacts
    target: ModelFacts
    positions: PositionMode
    patch_kernel: KernelMode
    classes: tuple[int, ...]
    """The source's class for each class, where init_from.class_map says so."""
    note: str
    """Where the mode of resampling comes from."""

    def value(self, name: str, *, read: Callable[[str], Tensor]) -> Tensor | None:
        """The fp32 value that the target's tensor starts from; None where it starts afresh, by its own recipe.

        `read` gets the source's whole tensor by name and is called for what is used only.
        """
        row = next(row for row in self.rows if row.name == name)
        if row.action not in ("loaded", "resampled", "mapped", "merged"):
            return None
        value = _transferred_value(row, plan=self, read=read)
        assert tuple(value.shape) == row.target_shape, f"{name}: {tuple(value.shape)}, expected {row.target_shape}"
        return value


def plan_transfer(config: InitFromConfig, *, source: ModelFacts, target: ModelFacts) -> TransferPlan:
    """Decide for every tensor. Raises `CheckpointError` listing what does not fit, with the first mismatches in full."""
    mode = config.positions or source.resampling or UNSTORED_MODE
    classes = read_class_map(config.class_map) if config.class_map else ()
    heads = _mapped_head_rows(config, source=source, target=target) if classes else _head_rows(config, source=source, target=target)
    rows = [*_backbone_rows(source, target=target, mode=mode), *heads]
    kinds = [model.settings.get("kind") for model in (source, target)]
    if kinds[0] != kinds[1]:
        problems = [f"model.kind: {kinds[0]} in the source, {kinds[1]} here"]
    else:
        problems = [*_problems(rows, source=source, target=target, mode=mode), *_class_problems(rows, classes=classes)]
    if problems:
        raise CheckpointError(_refusal(config, problems))
    order = {name: index for index, name in enumerate([*target.shapes, *source.shapes])}
    rows.sort(key=lambda row: (row.target_shape is None, order[row.name]))
    return TransferPlan(
        rows=tuple(rows),
        source=source,
        target=target,
        positions=mode,
        patch_kernel=config.patch_kernel,
        classes=classes,
        note=_mode_note(config, mode=mode, source=source, target=target),
    )


def format_table(plan: TransferPlan) -> str:
    """The plan as text for the console: a line for everything but what is loaded unchanged, which is counted."""
    loaded = [row for row in plan.rows if row.action == "loaded"]
    others = [row for row in plan.rows if row.action != "loaded"]
    num_elements = sum(torch.Size(row.target_shape or ()).numel() for row in loaded)
    lines = [("action", "tensor", "source", "here", "")]
    lines += [(row.action, row.name, _shown(row.source_shape), _shown(row.target_shape), row.detail) for row in others]
    lines.append(("loaded", f"{len(loaded)} tensors", "", "", f"{num_elements:,} values, unchanged"))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    table = ["  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]).rstrip() for line in lines]
    differing = ", ".join(_differing_settings(plan.source, target=plan.target))
    settings = [f"settings that differ: {differing}"] if differing else []
    return "\n".join([*table, *settings, f"positions: mode {plan.positions}, {plan.note}"])


def _differing_settings(source: ModelFacts, *, target: ModelFacts) -> Iterator[str]:
    for name, value in target.settings.items():
        if name in source.settings and source.settings[name] != value:
            yield f"model.{name} {json.dumps(source.settings[name])} in the source, {json.dumps(value)} here"


def _mode_note(config: InitFromConfig, *, mode: PositionMode, source: ModelFacts, target: ModelFacts) -> str:
    if config.positions is not None:
        origin = "asked for by init_from.positions"
    elif source.resampling is not None:
        origin = "stored with the source"
    else:
        origin = "the default, as the source is from before the mode was stored"
    if target.resampling == mode:
        return origin
    return f"{origin}; this model's own is {target.resampling}: set model.resampling to {mode} to go on with the source's"


def _backbone_rows(source: ModelFacts, *, target: ModelFacts, mode: PositionMode) -> Iterator[Row]:
    for name in _union(source, target=target, in_backbone=True):
        row = Row(name=name, action="loaded", source_shape=source.shapes.get(name), target_shape=target.shapes.get(name))
        yield _special_row(row, source=source, target=target, mode=mode) or row


def _special_row(row: Row, *, source: ModelFacts, target: ModelFacts, mode: PositionMode) -> Row | None:
    """The row of a tensor that may differ between the models, None for all others."""
    if row.source_shape is None or row.target_shape is None:
        return _one_sided_row(row, target=target)
    here, there = source.tables.get(row.name), target.tables.get(row.name)
    if here is not None and there is not None and here != there and can_fit(here, target=there, mode=mode):
        return _with(row, action="resampled", detail=describe_fit(here, target=there, mode=mode))
    if row.name == PATCH_KERNEL and source.kernel_side != target.kernel_side and _kernel_channels(source) == _kernel_channels(target):
        return _with(row, action="resampled", detail=f"patch side {source.kernel_side} to {target.kernel_side} by PI-resize (FlexiViT)")
    if row.name in _ROW_OF_TOKEN and _loses_its_row(_ROW_OF_TOKEN[row.name], source=source, target=target):
        return _with(row, action="merged", detail="with its position, for which this model's table has no row")
    return None


def _one_sided_row(row: Row, *, target: ModelFacts) -> Row | None:
    """What one of the models is without: tokens, the pooling, and tables that start from zeros and so change nothing at first."""
    if row.target_shape is not None and "position_bias" in row.name and row.name in target.tables:
        return _with(row, action="initialised", detail="the source has no position bias; at 0 it changes nothing")
    what = next((words for start, words in _MAY_COME_AND_GO.items() if row.name.startswith(start)), None)
    if what is None:
        return None
    if row.target_shape is None:
        return _with(row, action="dropped", detail=f"this model has no {what}")
    return _with(row, action="initialised", detail=f"the source has no {what}")


def _loses_its_row(name: str, *, source: ModelFacts, target: ModelFacts) -> bool:
    here, there = source.tables.get(POSITIONS), target.tables.get(POSITIONS)
    return isinstance(here, GridTable) and isinstance(there, GridTable) and name in here.prefix and name not in there.prefix


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


def _mapped_head_rows(config: InitFromConfig, *, source: ModelFacts, target: ModelFacts) -> Iterator[Row]:
    """The last layer has a row for each class; what comes before it is kept."""
    for name in _union(source, target=target, in_backbone=False):
        row = Row(name=name, action="loaded", source_shape=source.shapes.get(name), target_shape=target.shapes.get(name))
        has_classes = name in _OF_CLASSES and row.source_shape is not None and row.target_shape is not None
        yield _with(row, action="mapped", detail=f"a row for each class, by {config.class_map}") if has_classes else row


def _class_problems(rows: list[Row], *, classes: tuple[int, ...]) -> Iterator[str]:
    for row in rows:
        if row.action != "mapped" or row.source_shape is None or row.target_shape is None:
            continue
        if row.source_shape[1:] != row.target_shape[1:]:
            yield f"{row.name}: {_shown(row.source_shape)} in the source, {_shown(row.target_shape)} here"
        if len(classes) != row.target_shape[0]:
            yield f"init_from.class_map: {len(classes)} lines for the {row.target_shape[0]} classes of {row.name}"
        if max(classes) >= row.source_shape[0]:
            yield f"init_from.class_map: class {max(classes)}, and {row.name} of the source has classes 0 to {row.source_shape[0] - 1}"


def _problems(rows: list[Row], *, source: ModelFacts, target: ModelFacts, mode: PositionMode) -> Iterator[str]:
    if source.num_channels != target.num_channels:
        yield f"model.num_channels: {source.num_channels} in the source, {target.num_channels} here"
    heads = [model.settings.get("num_heads") for model in (source, target)]
    if None not in heads and heads[0] != heads[1]:
        yield f"model.num_heads: {heads[0]} in the source, {heads[1]} here, which cut the same projections into other heads"
    unruled = [row.name for row in rows if row.action == "loaded" and _lacks_rule(row.name, source=source, target=target, mode=mode)]
    if unruled:
        known = ", ".join(name for name, rules in POSITION_MODES.items() if rules.relative is not None)
        more = f" and {len(unruled) - 1} more" if len(unruled) > 1 else ""
        yield f"{unruled[0]}{more}: mode {mode} says nothing about relative positions; set init_from.positions to one of {known}"
    for row in rows:
        if row.action == "loaded" and row.source_shape != row.target_shape and row.name not in unruled:
            if row.name == PATCH_KERNEL and source.num_channels != target.num_channels:
                continue
            yield f"{row.name}: {_shown(row.source_shape)} in the source, {_shown(row.target_shape)} here"
        elif row.action == "resampled" and _width(row.name, row.source_shape) != _width(row.name, row.target_shape):
            yield f"{row.name}: {_shown(row.source_shape)} in the source, {_shown(row.target_shape)} here"


def _kernel_channels(model: ModelFacts) -> int:
    """Channels that patches are cut from: those of the image, or of a stem's features."""
    return model.shapes[PATCH_KERNEL][1] // model.kernel_side**2


def _lacks_rule(name: str, *, source: ModelFacts, target: ModelFacts, mode: PositionMode) -> bool:
    here, there = source.tables.get(name), target.tables.get(name)
    return isinstance(here, OffsetTable) and isinstance(there, OffsetTable) and here != there and POSITION_MODES[mode].relative is None


def _width(name: str, shape: Shape | None) -> int:
    """The model width in the shape of a patch kernel (D, C*P*P), or of a table, whose last dimension is no position."""
    assert shape is not None, name
    return shape[0] if name == PATCH_KERNEL else shape[-1]


def _refusal(config: InitFromConfig, problems: list[str]) -> str:
    count = f"{len(problems)} difference{'s' if len(problems) > 1 else ''}"
    shown = [f"  {problem}" for problem in problems[:_SHOWN_PROBLEMS]]
    more = [f"  ... and {len(problems) - _SHOWN_PROBLEMS} more"] if len(problems) > _SHOWN_PROBLEMS else []
    head = " With init_from.head 'auto' a head that differs is replaced." if config.head == "keep" else ""
    remedy = (
        "Give this model the width, depth, heads, MLP width, channels, stem and kind of positions of the source; image size, patch"
        f" size, class, distillation and register tokens, pooling and head may differ.{head}"
    )
    return "\n".join([f"init_from.path {config.path}: its weights do not fit this model ({count}):", *shown, *more, remedy])


def _transferred_value(row: Row, *, plan: TransferPlan, read: Callable[[str], Tensor]) -> Tensor:
    """The target's fp32 value of a loaded, resampled or merged tensor, made of the source's."""
    value = read(row.name).float()
    source, target = plan.source, plan.target
    if row.action == "merged":
        table = source.tables[POSITIONS]
        assert isinstance(table, GridTable), table
        index = table.prefix.index(_ROW_OF_TOKEN[row.name])
        return value + read(POSITIONS).float()[:, index : index + 1]
    if row.action == "loaded":
        return value
    if row.action == "mapped":
        return value[list(plan.classes)]
    if row.name == PATCH_KERNEL:
        sides = {"source": source.kernel_side, "target": target.kernel_side}
        return resample_patch_kernel(value, num_channels=_kernel_channels(source), mode=plan.patch_kernel, **sides)
    return fit_table(value, source=source.tables[row.name], target=target.tables[row.name], mode=plan.positions)


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
