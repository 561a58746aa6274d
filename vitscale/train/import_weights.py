"""Another project's weights as a checkpoint of ours, which fine-tuning and evaluation take like a run's, compared before it is kept."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitscale.checkpoint.commit import SaveContent, commit, encode_state, prepare, write_part
from vitscale.checkpoint.discover import hash_file
from vitscale.checkpoint.fragments import Fragment
from vitscale.checkpoint.layout import CHECKPOINTS, save_folder, step_folder
from vitscale.checkpoint.manifest import FileEntry
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import CheckpointError, UsageError, apply_overrides, decode, dump_yaml
from vitscale.config.progress import Watch, silent
from vitscale.train.equality import DEFAULT_TOLERANCE, Comparison, Foreign, compare, planned_comparisons
from vitscale.train.export import DEFAULT_MAX_MEMORY_BYTES
from vitscale.train.room import Room, find_room
from vitscale.train.staging import check_final, scratch_folder, staged_folder
from vitscale.train.stored_model import StoredModel
from vitscale.train.tensor_file import library_of
from vitscale.weights.installed import (
    BareOutput,
    NotUsable,
    Run,
    bare_output,
    timm_with_npz,
    timm_with_open_clip,
    timm_with_state,
    transformers_from_folder,
)
from vitscale.weights.mismatch import refuse_mismatch
from vitscale.weights.names import Conversion, plan_conversions
from vitscale.weights.pickled import convert_pickle, shapes_of_pickle
from vitscale.weights.recognise import Recognised, explain_names, recognise
from vitscale.weights.rules import HeldConfig, Layout
from vitscale.weights.sources import WeightSource, find_weight_files, open_pickle, open_source, recognise_container
from vitscale.weights.targets import check_layout, differences, project_form, sizes_of


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The folder that was written, the layout that was found, the model as sections of a run's configuration, sentences on what the
    file does not tell and was assumed, names in the file of what is no part of the model, and what the outputs were compared with."""

    folder: Path
    layout: Layout
    model: dict[str, Any]
    assumed: tuple[str, ...]
    set_aside: tuple[str, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """What an import would read, take it for and write, as `Imported`, of the files `files`; `comparisons` have no figures yet."""

    folder: Path
    files: tuple[Path, ...]
    layout: Layout
    num_tensors: int
    model: dict[str, Any]
    assumed: tuple[str, ...]
    set_aside: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    room: Room
    num_parts: int


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """What is known before a tensor is read."""

    found: Recognised
    values: dict[str, Any]
    stored: StoredModel
    model: HeldConfig
    conversions: list[Conversion]
    comparisons: tuple[Comparison, ...]
    room: Room

    @property
    def num_bytes(self) -> int:
        """Of the weights in fp32."""
        return sum(4 * conversion.num_elements for conversion in self.conversions)


def plan_import(
    source: Path,
    output: Path,
    *,
    overrides: Sequence[str] = (),
    drop: Sequence[str] = (),
    allow_pickle: bool = False,
    tolerance: float = DEFAULT_TOLERANCE,
    max_memory_bytes: int = DEFAULT_MAX_MEMORY_BYTES,
) -> ImportPlan:
    """What `import_weights` would do, from the files' headers. Writes nothing. Raises as that does for what can be known before values
    are read: of a pickle everything is read, by a process of its own."""
    with _opened(source, output=output, allow_pickle=allow_pickle, keeps_pickle=True) as opened:
        planned = _plan(opened, output=output, overrides=overrides, drop=drop, tolerance=tolerance, max_memory_bytes=max_memory_bytes)
    return ImportPlan(
        folder=output,
        files=find_weight_files(source),
        layout=planned.found.described.layout,
        num_tensors=len(planned.found.shapes),
        model=planned.values,
        assumed=planned.found.described.assumed,
        set_aside=planned.found.set_aside,
        comparisons=planned.comparisons,
        room=planned.room,
        num_parts=len(list(_parts(planned.conversions, max_memory_bytes=max_memory_bytes))),
    )


def import_weights(
    source: Path,
    output: Path,
    *,
    overrides: Sequence[str] = (),
    drop: Sequence[str] = (),
    allow_pickle: bool = False,
    tolerance: float = DEFAULT_TOLERANCE,
    max_memory_bytes: int = DEFAULT_MAX_MEMORY_BYTES,
    watch: Watch = silent,
) -> Imported:
    """Write the weights at `source` (an npz or safetensors file, or a folder of timm or Hugging Face) to the new folder `output`, which
    then holds one checkpoint as a run directory does.

    `overrides` (`model.num_heads=12`) give what the file does not tell, or tells otherwise; `drop` are patterns of names that are no
    part of the model. A file of torch.save is refused unless `allow_pickle`. Read and written tensor by tensor, which take up to
    `max_memory_bytes` beside the program itself; `watch` is told how far it is. Raises `CheckpointError` for a file that is damaged, of
    another architecture, or whose outputs differ by more than `tolerance` from those of the model here, `ConfigError` and `UsageError`
    for the output.
    """
    with _opened(source, output=output, allow_pickle=allow_pickle, watch=watch) as opened:
        planned = _plan(opened, output=output, overrides=overrides, drop=drop, tolerance=tolerance, max_memory_bytes=max_memory_bytes)
        found, stored = planned.found, planned.stored
        with staged_folder(output) as partial_folder:
            content = _content(stored, found=found, source=source, watch=watch)
            with watch("reading and writing", total=2 * planned.num_bytes, unit="bytes") as report:
                checkpoint = _write_checkpoint(
                    partial_folder / CHECKPOINTS,
                    parts=_parts(planned.conversions, max_memory_bytes=max_memory_bytes),
                    read=partial(_finite, found, where=str(source)),
                    content=content,
                    report=report,
                    where=str(source),
                )
            comparisons = compare(
                stored,
                read=CheckpointReader(checkpoint).read_full,
                foreign=_foreign(opened, found=found, model=planned.model, num_classes=stored.num_classes),
                max_memory_bytes=max_memory_bytes,
                tolerance=tolerance,
                where=str(source),
                watch=watch,
            )
    return Imported(
        folder=output,
        layout=found.described.layout,
        model=planned.values,
        assumed=found.described.assumed,
        set_aside=found.set_aside,
        comparisons=comparisons,
    )


def _plan(
    opened: WeightSource,
    *,
    output: Path,
    overrides: Sequence[str],
    drop: Sequence[str],
    tolerance: float,
    max_memory_bytes: int,
) -> _Planned:
    where = str(opened.path)
    found = recognise(opened, drop=drop)
    layout = found.described.layout
    values = _sections(found, overrides=overrides, where=where)
    stored = decode(StoredModel, values=values, source=where)
    model = check_layout(stored.model, layout=layout, num_classes=stored.num_classes, where=where)
    conversions = _conversions(found, stored=stored, model=model, where=where)
    num_bytes = sum(4 * conversion.num_elements for conversion in conversions)
    room = find_room(
        output,
        memory_bytes=max(3 * 4 * conversion.num_elements for conversion in conversions),
        held="the largest tensor of this model in 3 forms",
        max_memory_bytes=max_memory_bytes,
        # A pickle that was not converted yet takes the room of its safetensors too.
        disk_bytes=2 * num_bytes if opened.container == "pickle" else num_bytes,
    )
    comparisons = planned_comparisons(
        layout,
        library=library_of(layout),
        model=project_form(model, layout=layout),
        shapes=found.shapes,
        max_memory_bytes=max_memory_bytes,
        tolerance=tolerance,
        where=where,
    )
    return _Planned(
        found=found,
        values=values,
        stored=stored,
        model=model,
        conversions=conversions,
        comparisons=comparisons,
        room=room,
    )


@contextmanager
def _opened(source: Path, *, output: Path, allow_pickle: bool, keeps_pickle: bool = False, watch: Watch = silent) -> Iterator[WeightSource]:
    """The source opened; a pickle is first turned into safetensors beside `output`, where that was allowed, or for `keeps_pickle` opened
    for its shapes only. Raises where `output` cannot be written before anything is read."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output}: is there already; give a new folder")
    check_final(output)
    files = find_weight_files(source)
    containers = {recognise_container(path) for path in files}
    if "pickle" not in containers:
        yield open_source(source, files=files, container="npz" if containers == {"npz"} else "safetensors")
        return
    if not allow_pickle:
        raise CheckpointError(
            f"{files[0]}: is a file of torch.save, which is a pickle: it may run any program when it is loaded. Take a safetensors file"
            " if there is one; --allow-pickle reads its tensors, and nothing else, in a process of its own"
        )
    if keeps_pickle:
        yield open_pickle(source, file=files[0], shapes=shapes_of_pickle(files[0]))
        return
    with scratch_folder(output) as folder:
        converted = folder / "model.safetensors"
        with watch("reading the pickle in a process of its own", total=1) as report:
            convert_pickle(files[0], target=converted)
            report(1)
        yield open_source(source, files=(converted,), container="safetensors")


def _sections(found: Recognised, *, overrides: Sequence[str], where: str) -> dict[str, Any]:
    """The model as sections of a run's configuration. Raises `CheckpointError` for what neither the file nor an override tells."""
    described = found.described
    resampling = {} if described.positions is None else {"resampling": described.positions}
    values: dict[str, Any] = {"model": {**described.model, **resampling}}
    if described.head is not None:
        values["objective"] = {"kind": "supervised", **described.head}
    values = apply_overrides(values, overrides=overrides)
    assert isinstance(values, dict), "overrides keep a mapping one"
    if not isinstance(values.get("model"), dict):
        return values  # which is no configuration, as will be said
    needed = ("num_heads", "image_size", *(("window_size",) if values["model"].get("version") == 2 else ()))
    missing = [key for key in needed if key not in values["model"]]
    if missing:
        given = " ".join(f"model.{key}=..." for key in missing)
        raise CheckpointError(f"{where}: the file does not tell {' and '.join(missing)} of its model; give {given}")
    return values


def _conversions(found: Recognised, *, stored: StoredModel, model: HeldConfig, where: str) -> list[Conversion]:
    """How the file's tensors become ours. Raises `CheckpointError` where they are not exactly those of the model."""
    with torch.device("meta"):
        shapes = {name: tuple(parameter.shape) for name, parameter in stored.build().named_parameters()}
    described = found.described
    sizes = sizes_of(model, their_row=described.class_row, is_split_mlp=described.is_split_mlp, is_split_qkv=described.is_split_qkv)
    conversions = plan_conversions(shapes, layout=found.described.layout, sizes=sizes)
    expected = {name: their_shape for conversion in conversions for name, their_shape in conversion.theirs.items()}
    refuse_mismatch(expected=expected, found=found.shapes, where=where, hint=explain_names(found.shapes))
    return conversions


def _parts(conversions: Sequence[Conversion], *, max_memory_bytes: int) -> Iterator[list[Conversion]]:
    """Conversions whose tensors are held together and become one file."""
    largest = max(4 * conversion.num_elements for conversion in conversions)
    room = max_memory_bytes - 2 * largest  # a tensor is read and converted while those before it are held
    part: list[Conversion] = []
    held = 0
    for conversion in conversions:
        size = 4 * conversion.num_elements
        if part and held + size > room:
            yield part
            part, held = [], 0
        part.append(conversion)
        held += size
    yield part


def _write_checkpoint(
    folder: Path,
    *,
    parts: Iterator[list[Conversion]],
    read: Callable[[str], Tensor],
    content: SaveContent,
    report: Callable[[int], None],
    where: str,
) -> Path:
    """`report` is told the bytes that were read, in fp32, and written."""
    partial_folder = save_folder(folder, step=content.step)
    prepare(partial_folder)
    entries: list[FileEntry] = []
    done = 0
    for rank, part in enumerate(parts):
        fragments: list[Fragment] = []
        for conversion in part:
            fragments += _fragments(conversion, read=read, where=where)
            done += 4 * conversion.num_elements
            report(done)
        entries.append(write_part(partial_folder, rank=rank, fragments=fragments, given_up=threading.Event()))
        done += sum(4 * conversion.num_elements for conversion in part)
        report(done)
    commit(partial_folder, content=content, parts=entries, check_owner=lambda: None)
    return step_folder(folder, step=content.step)


def _fragments(conversion: Conversion, *, read: Callable[[str], Tensor], where: str) -> Iterator[Fragment]:
    theirs = [read(name) for name in conversion.theirs]
    try:
        ours = conversion.to_ours(theirs)
    except CheckpointError as error:  # of values, where a form knows no file
        raise CheckpointError(f"{where}: {error}") from None
    for name, value in ours.items():
        shape = conversion.ours[name]
        assert value.numel() == math.prod(shape), (name, value.shape, shape)
        yield Fragment(name=name, kind="weight", shape=shape, start=0, values=value.contiguous().flatten())


def _finite(found: Recognised, name: str, *, where: str) -> Tensor:
    value = found.read(name)
    bad = value.numel() - int(torch.isfinite(value).sum())
    if bad:
        raise CheckpointError(
            f"{where}: {name} holds {bad} of {value.numel()} values that are NaN or infinite: the file is damaged, or training had"
            " diverged when it was saved; use another one"
        )
    return value


def _content(stored: StoredModel, *, found: Recognised, source: Path, watch: Watch) -> SaveContent:
    files = find_weight_files(source)
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        report(done)

    with watch("hashing", total=sum(path.stat().st_size for path in files), unit="bytes") as report:
        hashes = {path.name: hash_file(path, advance=advance) for path in files}
    record = {
        "source": str(source),
        "sha256": hashes,
        "layout": found.described.layout,
        "assumed": list(found.described.assumed),
    }
    state = {"step": 0, "samples": 0, "imported": record}
    sections = stored.model_dump(mode="json", exclude_none=stored.objective is None)
    return SaveContent(step=0, optimizer_steps=0, zero_stage=0, state_text=encode_state(state), config_text=dump_yaml(sections))


def _foreign(opened: WeightSource, *, found: Recognised, model: HeldConfig, num_classes: int) -> Foreign:
    layout = found.described.layout
    computed = project_form(model, layout=layout)
    class_row = found.described.class_row
    load: Callable[[], Run] = partial(timm_with_npz, computed, path=opened.files[0], num_classes=num_classes, class_row=class_row)
    if layout.startswith("timm"):
        load = partial(_timm, found, model=computed, num_classes=num_classes)
    elif layout == "open_clip":
        load = partial(_open_clip, found, model=computed, num_classes=num_classes)
    elif layout.startswith("hf_"):
        load = partial(_transformers, opened, output=bare_output(model, layout=layout), has_head=num_classes > 0)
    return Foreign(
        layout=layout,
        model=computed,
        shapes=dict(found.shapes),
        read=found.read,
        library=library_of(layout),
        differences=differences(model, layout=layout),
        load=load,
    )


def _timm(found: Recognised, *, model: HeldConfig, num_classes: int) -> Run:
    state = {name: found.read(name) for name in found.shapes}
    return timm_with_state(model, layout=found.described.layout, state=state, num_classes=num_classes, class_row=found.described.class_row)


def _open_clip(found: Recognised, *, model: HeldConfig, num_classes: int) -> Run:
    return timm_with_open_clip(model, state={name: found.read(name) for name in found.shapes}, num_classes=num_classes)


def _transformers(opened: WeightSource, *, output: BareOutput, has_head: bool) -> Run:
    if opened.files[0].parent != opened.path:
        raise NotUsable("its file is a pickle, which it would load in this process")
    return transformers_from_folder(opened.path, output=output, has_head=has_head)
