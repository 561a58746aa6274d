"""A checkpoint's weights as another project loads them: timm, Hugging Face transformers, vit_jax or big_vision, or as a graph of ONNX,
compared and described."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.checkpoint.discover import resolve_checkpoint
from vitscale.checkpoint.durable import write_durably
from vitscale.checkpoint.fragments import Kind
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config.progress import Watch, silent
from vitscale.models import ViTConfig
from vitscale.train.equality import DEFAULT_TOLERANCE, Comparison, compare, planned_comparisons
from vitscale.train.model_card import SIGNATURE, model_card
from vitscale.train.onnx_file import plan_graph_file
from vitscale.train.room import Room, find_room
from vitscale.train.staging import check_final, staged_folder
from vitscale.train.stored_model import StoredModel, read_stored_model
from vitscale.train.tensor_file import plan_tensor_file
from vitscale.train.weight_files import StoredWeights, WeightFiles
from vitscale.weights.companions import companion_files
from vitscale.weights.rules import HeldConfig, Layout
from vitscale.weights.targets import Format, choose_layout, differences, image_note, project_form

DEFAULT_MAX_MEMORY_BYTES = 4 << 30

_CARD = "README.md"
_OF_TRAINING = ("stochastic_depth", "dropout", "patch_dropout", "flexible_patches", "naflex")
"""Settings of a model that matter in training, or for inputs that no layout knows, only."""


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
    weights: StoredWeights
    files: WeightFiles
    folder: Path
    companions: dict[str, dict[str, Any]]
    comparisons: tuple[Comparison, ...]
    room: Room

    @property
    def notes(self) -> tuple[str, ...]:
        """What the layout's programs do otherwise."""
        return (*differences(self.model, layout=self.layout), *image_note(self.model, layout=self.layout))

    @property
    def written(self) -> tuple[str, ...]:
        """The files of the export."""
        return (*self.files.names, _CARD, *self.companions)

    @property
    def replaceable(self) -> tuple[str, ...]:
        """The files of an older export."""
        return (*self.written, *self.files.older_names)


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
        num_tensors=len(planned.files.shapes),
        num_bytes=planned.files.num_bytes,
        files=planned.written,
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
    reader, files, folder = planned.reader, planned.files, planned.folder
    with staged_folder(folder, replaceable=planned.replaceable, signature=(_CARD, SIGNATURE)) as partial_folder:
        with watch(f"writing {files.names[0]}", total=files.num_bytes, unit="bytes") as report:
            files.write(partial_folder / files.names[0], report)
        for name, values in planned.companions.items():
            write_durably(partial_folder / name, (json.dumps(values, indent=2) + "\n").encode())
        comparisons = compare(
            planned.stored,
            read=planned.weights.read,
            foreign=files.foreign(partial_folder / files.names[0]),
            max_memory_bytes=max_memory_bytes,
            tolerance=tolerance,
            where=str(folder),
            watch=watch,
        )
        card = model_card(reader, kind=kind, layout=planned.layout, comparisons=comparisons, notes=planned.notes, interface=files.interface)
        write_durably(partial_folder / _CARD, card.encode())
    return Exported(
        folder=folder,
        layout=planned.layout,
        num_tensors=len(files.shapes),
        num_bytes=sum((folder / name).stat().st_size for name in files.names),
        comparisons=comparisons,
        notes=planned.notes,
    )


def _plan(run: Path, *, layout: Format, kind: Kind, output: Path | None, tolerance: float, max_memory_bytes: int) -> _Planned:
    reader = CheckpointReader(resolve_checkpoint(run))
    stored = read_stored_model(reader)
    chosen, model = choose_layout(
        stored.model, target=layout, num_classes=stored.num_classes, has_pre_logits=stored.has_pre_logits, where=str(reader.path)
    )
    weights = StoredWeights(reader, stored=stored, model=model, kind=kind)
    plan_files = plan_graph_file if chosen == "onnx" else plan_tensor_file
    files = plan_files(weights, stored=stored, layout=chosen, model=model, metadata=_metadata(model, reader, kind=kind))
    folder = output if output is not None else _home(reader.path) / "export" / layout
    planned = _Planned(
        reader=reader,
        stored=stored,
        layout=chosen,
        model=model,
        weights=weights,
        files=files,
        folder=folder,
        companions=companion_files(model, layout=chosen, num_classes=stored.num_classes),
        room=find_room(
            folder, memory_bytes=files.memory_bytes, held=files.held, max_memory_bytes=max_memory_bytes, disk_bytes=files.num_bytes
        ),
        comparisons=planned_comparisons(
            chosen,
            library=files.library,
            model=project_form(model, layout=chosen),
            shapes=files.shapes,
            max_memory_bytes=max_memory_bytes,
            tolerance=tolerance,
            where=str(folder),
        ),
    )
    check_final(folder, replaceable=planned.replaceable, signature=(_CARD, SIGNATURE))
    return planned


def _home(checkpoint: Path) -> Path:
    """The run directory of a checkpoint in its folder of checkpoints; else the checkpoint's own parent."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def _metadata(model: HeldConfig, reader: CheckpointReader, *, kind: Kind) -> dict[str, str]:
    keys = ("width", "depth", "mlp_width", "num_heads", "patch_size") if isinstance(model, ViTConfig) else ()
    sizes = {key: getattr(model.shape, key) for key in keys}
    values = model.model_dump(mode="json") | sizes
    return {"step": str(reader.manifest.step), "weights": kind, "model": json.dumps(values)}
