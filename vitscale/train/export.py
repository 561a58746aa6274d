"""A checkpoint's weights as another project loads them: timm, Hugging Face transformers, vit_jax or big_vision, compared and described."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitscale.checkpoint.discover import resolve_checkpoint
from vitscale.checkpoint.durable import DurableStream, write_durably
from vitscale.checkpoint.fragments import Kind
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config.progress import Watch, silent
from vitscale.models import ViTConfig
from vitscale.nn.positions import sincos_positions
from vitscale.train.equality import DEFAULT_TOLERANCE, Comparison, Foreign, compare, planned_comparisons
from vitscale.train.model_card import SIGNATURE, model_card
from vitscale.train.room import Room, find_room
from vitscale.train.staging import check_final, staged_folder
from vitscale.train.stored_model import StoredModel, check_fits, read_stored_model
from vitscale.weights.companions import companion_files
from vitscale.weights.containers import write_npz, write_safetensors
from vitscale.weights.forms import Shape
from vitscale.weights.installed import bare_output, timm_from_folder, timm_with_npz, transformers_from_folder
from vitscale.weights.names import Conversion, plan_conversions
from vitscale.weights.rule import POSITIONS
from vitscale.weights.rules import HeldConfig, Layout
from vitscale.weights.sources import open_source
from vitscale.weights.targets import Format, choose_layout, differences, has_class_row, image_note, project_form, sizes_of, writes_halves

DEFAULT_MAX_MEMORY_BYTES = 4 << 30

_CARD = "README.md"
_PREFIXES: dict[Layout, str] = {"big_vision": "params/"}
"""What stands before every name in a file."""
_OF_TRAINING = ("stochastic_depth", "dropout", "patch_dropout", "flexible_patches", "naflex")
"""Settings of a model that matter in training, or for inputs that no layout knows, only."""
_CHUNK_ELEMENTS = 1 << 22
"""Elements on their way between files: 16 MiB."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The folder that was written, in which layout, how many tensors of how many bytes are in it, and what its outputs were compared
    with."""

    folder: Path
    layout: Layout
    num_tensors: int
    num_bytes: int
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()
    """What the layout's programs do otherwise, and no file can tell them."""


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """What an export would read and write; `comparisons` have no figures yet."""

    checkpoint: Path
    folder: Path
    layout: Layout
    num_tensors: int
    num_bytes: int
    """Of the weights."""
    files: tuple[str, ...]
    replaces: bool
    """Whether an older export is there."""
    model: dict[str, Any]
    left_behind: tuple[str, ...]
    """Settings of training that no layout carries."""
    notes: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    room: Room


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """What is known before a tensor is read."""

    reader: CheckpointReader
    stored: StoredModel
    layout: Layout
    model: HeldConfig
    weights: "_Weights"
    conversions: list[Conversion]
    folder: Path
    file_name: str
    companions: dict[str, dict[str, Any]]
    comparisons: tuple[Comparison, ...]
    room: Room

    @property
    def shapes(self) -> dict[str, Shape]:
        """Their tensors."""
        return {name: shape for conversion in self.conversions for name, shape in conversion.theirs.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the layout's programs do otherwise."""
        return (*differences(self.model, layout=self.layout), *image_note(self.model, layout=self.layout))

    @property
    def replaceable(self) -> tuple[str, ...]:
        """The files of an older export."""
        return (self.file_name, _CARD, *self.companions)


def plan_export_checkpoint(
    run: Path,
    *,
    layout: Format,
    kind: Kind = "weight",
    output: Path | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    max_memory_bytes: int = DEFAULT_MAX_MEMORY_BYTES,
) -> ExportPlan:
    """What `export_checkpoint` would do. Writes nothing. Raises as that does for what can be known before values are read."""
    planned = _plan(run, layout=layout, kind=kind, output=output, tolerance=tolerance, max_memory_bytes=max_memory_bytes)
    model = planned.model
    fields = {name: field.get_default(call_default_factory=True) for name, field in type(model).model_fields.items()}
    return ExportPlan(
        checkpoint=planned.reader.path,
        folder=planned.folder,
        layout=planned.layout,
        num_tensors=len(planned.shapes),
        num_bytes=planned.room.disk_bytes,
        files=planned.replaceable,
        replaces=planned.folder.exists(),
        model={"kind": model.kind, **model.model_dump(mode="json", exclude_defaults=True)},
        left_behind=tuple(f"model.{name}" for name in _OF_TRAINING if name in fields and getattr(model, name) != fields[name]),
        notes=planned.notes,
        comparisons=planned.comparisons,
        room=planned.room,
    )


def export_checkpoint(
    run: Path,
    *,
    layout: Format,
    kind: Kind = "weight",
    output: Path | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    max_memory_bytes: int = DEFAULT_MAX_MEMORY_BYTES,
    watch: Watch = silent,
) -> Exported:
    """Write the fp32 weights of a run (its newest whole checkpoint) or of one checkpoint to the folder `output` (None:
    `export/<layout>` beside the checkpoints): weights, the files that say how they are built, and a model card.

    `kind` "ema" takes their moving average. Reads and writes tensor by tensor, whatever number of ranks wrote the checkpoint; tensors
    take up to `max_memory_bytes` beside the program itself; `watch` is told how far it is. Before the folder appears, the outputs of
    the model here and of what was written are compared. Raises `CheckpointError` when there is no usable checkpoint, `layout` cannot hold
    the model, or the outputs differ by more than `tolerance`; `ConfigError` and `UsageError` when the folder cannot be written.
    """
    planned = _plan(run, layout=layout, kind=kind, output=output, tolerance=tolerance, max_memory_bytes=max_memory_bytes)
    reader, folder, model, file_name = planned.reader, planned.folder, planned.model, planned.file_name
    with staged_folder(folder, replaceable=planned.replaceable, signature=(_CARD, SIGNATURE)) as partial_folder:
        with watch(f"writing {file_name}", total=planned.room.disk_bytes, unit="bytes") as report:
            _write_weights(
                partial_folder / file_name,
                conversions=planned.conversions,
                weights=planned.weights,
                metadata=_metadata(model, reader, kind=kind),
                prefix=_PREFIXES.get(planned.layout, ""),
                report=report,
            )
        for name, values in planned.companions.items():
            write_durably(partial_folder / name, (json.dumps(values, indent=2) + "\n").encode())
        comparisons = compare(
            planned.stored,
            read=planned.weights.read,
            foreign=_written(partial_folder / file_name, layout=planned.layout, model=model, num_classes=planned.stored.num_classes),
            max_memory_bytes=max_memory_bytes,
            tolerance=tolerance,
            where=str(folder),
            watch=watch,
        )
        card = model_card(reader, kind=kind, layout=planned.layout, comparisons=comparisons, notes=planned.notes)
        write_durably(partial_folder / _CARD, card.encode())
    return Exported(
        folder=folder,
        layout=planned.layout,
        num_tensors=len(planned.shapes),
        num_bytes=(folder / file_name).stat().st_size,
        comparisons=comparisons,
        notes=planned.notes,
    )


def _plan(run: Path, *, layout: Format, kind: Kind, output: Path | None, tolerance: float, max_memory_bytes: int) -> _Planned:
    reader = CheckpointReader(resolve_checkpoint(run))
    stored = read_stored_model(reader)
    chosen, model = choose_layout(
        stored.model, target=layout, num_classes=stored.num_classes, has_pre_logits=stored.has_pre_logits, where=str(reader.path)
    )
    weights = _Weights(reader, stored=stored, model=model, kind=kind)
    class_row = has_class_row(model, layout=chosen)
    conversions = plan_conversions(
        weights.shapes, layout=chosen, sizes=sizes_of(model, their_row=class_row, is_split_mlp=writes_halves(model, layout=chosen))
    )
    folder = output if output is not None else _home(reader.path) / "export" / layout
    shapes = {name: shape for conversion in conversions for name, shape in conversion.theirs.items()}
    planned = _Planned(
        reader=reader,
        stored=stored,
        layout=chosen,
        model=model,
        weights=weights,
        conversions=conversions,
        folder=folder,
        file_name="model.npz" if chosen in ("vit_jax", "big_vision") else "model.safetensors",
        companions=companion_files(model, layout=chosen, num_classes=stored.num_classes),
        # What cannot be passed on in pieces, or is run, is held whole: the largest such, in two forms.
        room=find_room(
            folder,
            memory_bytes=max(2 * 4 * conversion.num_elements for conversion in conversions),
            max_memory_bytes=max_memory_bytes,
            disk_bytes=sum(4 * math.prod(shape) for shape in shapes.values()),
            num_forms=2,
        ),
        comparisons=planned_comparisons(
            chosen,
            library=library_of(chosen),
            model=project_form(model, layout=chosen),
            shapes=shapes,
            max_memory_bytes=max_memory_bytes,
            tolerance=tolerance,
            where=str(folder),
        ),
    )
    check_final(folder, replaceable=planned.replaceable, signature=(_CARD, SIGNATURE))
    return planned


class _Weights:
    """The tensors of a checkpoint, and the table of fixed positions, which is no parameter here but is one elsewhere."""

    def __init__(self, reader: CheckpointReader, *, stored: StoredModel, model: HeldConfig, kind: Kind) -> None:
        with torch.device("meta"):
            module = stored.build()
        check_fits(module, reader=reader, kind=kind)
        self._reader = reader
        self._kind = kind
        self._fixed = _fixed_positions(model)
        tensors = {**dict(module.named_parameters()), **self._fixed}
        self.shapes: dict[str, Shape] = {name: tuple(value.shape) for name, value in tensors.items()}

    def read(self, name: str) -> Tensor:
        """A whole tensor."""
        return self._fixed[name] if name in self._fixed else self._reader.read_full(name, kind=self._kind)

    def pieces(self, name: str, *, start: int, stop: int) -> Iterator[Tensor]:
        """Its elements [start, stop) in order, a chunk at a time."""
        if name in self._fixed:
            yield self._fixed[name].flatten()[start:stop]
            return
        for begin in range(start, stop, _CHUNK_ELEMENTS):
            yield self._reader.read(name, kind=self._kind, start=begin, stop=min(begin + _CHUNK_ELEMENTS, stop))


def _fixed_positions(model: HeldConfig) -> dict[str, Tensor]:
    if not isinstance(model, ViTConfig) or (model.positions != "sincos2d_mae" and model.positions != "sincos2d_big_vision"):
        return {}
    shape = model.shape
    table = sincos_positions(model.positions, rows=shape.grid, columns=shape.grid, width=shape.width, class_token=shape.class_token)
    return {POSITIONS: table}


def _write_weights(
    path: Path,
    *,
    conversions: list[Conversion],
    weights: _Weights,
    metadata: Mapping[str, str],
    prefix: str,
    report: Callable[[int], None],
) -> None:
    """`report` is told the bytes that were written."""
    written = 0
    if path.suffix == ".npz":

        def groups() -> Iterator[dict[str, Tensor]]:
            nonlocal written
            for conversion in conversions:
                yield conversion.to_theirs([weights.read(name) for name in conversion.ours])
                written += 4 * conversion.num_elements
                report(written)

        write_npz(path, groups=groups(), prefix=prefix)
        return
    owners = {name: conversion for conversion in conversions for name in conversion.theirs}
    with path.open("xb") as file:
        stream = DurableStream(file)

        def write(data: bytes | memoryview) -> None:
            nonlocal written
            stream.write(data)
            written += len(data)
            report(written)

        write_safetensors(
            write,
            shapes={name: owners[name].theirs[name] for name in owners},
            values=lambda name: _slice_of(owners[name], name, weights=weights),
            metadata=metadata,
        )
        stream.finish()


def _slice_of(conversion: Conversion, name: str, *, weights: _Weights) -> Iterator[Tensor]:
    """The elements of one of their tensors: as they lie in ours, a piece at a time, or converted whole."""
    if not conversion.form.in_order:
        yield conversion.to_theirs([weights.read(ours) for ours in conversion.ours])[name]
        return
    start = 0
    for their_name, shape in conversion.theirs.items():
        stop = start + math.prod(shape)
        if their_name == name:
            break
        start = stop
    offset = 0
    for ours, shape in conversion.ours.items():
        size = math.prod(shape)
        first, last = max(start - offset, 0), min(stop - offset, size)
        if first < last:
            yield from weights.pieces(ours, start=first, stop=last)
        offset += size


def _written(path: Path, *, layout: Layout, model: HeldConfig, num_classes: int) -> Foreign:
    source = open_source(path, files=(path,), container="npz" if path.suffix == ".npz" else "safetensors")
    prefix = _PREFIXES.get(layout, "")
    computed = project_form(model, layout=layout)
    class_row = has_class_row(model, layout=layout)
    load = {
        ".npz": partial(timm_with_npz, computed, path=path, num_classes=num_classes, class_row=class_row),
        "timm": partial(timm_from_folder, path.parent),
        "hf": partial(transformers_from_folder, path.parent, output=bare_output(model, layout=layout), has_head=num_classes > 0),
    }[path.suffix if path.suffix == ".npz" else layout.partition("_")[0]]
    return Foreign(
        layout=layout,
        model=computed,
        shapes={name.removeprefix(prefix): shape for name, shape in source.shapes.items()},
        read=lambda name: source.read(f"{prefix}{name}"),
        library=library_of(layout),
        differences=differences(model, layout=layout),
        load=load,
    )


def library_of(layout: Layout) -> str:
    """Whose models load the files of a layout."""
    return "transformers" if layout.startswith("hf_") else "timm"


def _home(checkpoint: Path) -> Path:
    """The run directory of a checkpoint in its folder of checkpoints; else the checkpoint's own parent."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def _metadata(model: HeldConfig, reader: CheckpointReader, *, kind: Kind) -> dict[str, str]:
    keys = ("width", "depth", "mlp_width", "num_heads", "patch_size") if isinstance(model, ViTConfig) else ()
    sizes = {key: getattr(model.shape, key) for key in keys}
    values = model.model_dump(mode="json") | sizes
    return {"format": "pt", "step": str(reader.manifest.step), "weights": kind, "model": json.dumps(values)}
