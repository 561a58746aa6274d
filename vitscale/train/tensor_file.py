"""The weights of a layout that renames and reshapes tensors, in one file of safetensors or npz, written a piece at a time."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from vitscale.checkpoint.durable import DurableStream
from vitscale.train.equality import Foreign
from vitscale.train.stored_model import StoredModel
from vitscale.train.weight_files import StoredWeights, WeightFiles, num_bytes_of
from vitscale.weights.containers import write_npz, write_safetensors
from vitscale.weights.installed import bare_output, timm_from_folder, timm_with_npz, transformers_from_folder
from vitscale.weights.names import Conversion, plan_conversions
from vitscale.weights.rules import HeldConfig, Layout
from vitscale.weights.sources import open_source
from vitscale.weights.targets import differences, has_class_row, project_form, sizes_of, writes_halves

_PREFIXES: dict[Layout, str] = {"big_vision": "params/"}
"""What stands before every name in a file."""


def plan_tensor_file(
    weights: StoredWeights, *, stored: StoredModel, layout: Layout, model: HeldConfig, metadata: Mapping[str, str]
) -> WeightFiles:
    """The file of `layout` for `weights`, of which `metadata` is written into safetensors."""
    class_row = has_class_row(model, layout=layout)
    conversions = plan_conversions(
        weights.shapes, layout=layout, sizes=sizes_of(model, their_row=class_row, is_split_mlp=writes_halves(model, layout=layout))
    )
    return WeightFiles(
        names=("model.npz" if layout in ("vit_jax", "big_vision") else "model.safetensors",),
        shapes={name: shape for conversion in conversions for name, shape in conversion.theirs.items()},
        # What cannot be passed on in pieces, or is run, is held whole: the largest such, in two forms.
        memory_bytes=max(2 * 4 * conversion.num_elements for conversion in conversions),
        held="the largest tensor of this model in 2 forms",
        library=library_of(layout),
        write=partial(_write, conversions=conversions, weights=weights, metadata=metadata, prefix=_PREFIXES.get(layout, "")),
        foreign=partial(_written, layout=layout, model=model, num_classes=stored.num_classes),
    )


def library_of(layout: Layout) -> str:
    """Whose models load the files of a layout."""
    return "transformers" if layout.startswith("hf_") else "timm"


def _write(
    path: Path,
    report: Callable[[int], None],
    *,
    conversions: list[Conversion],
    weights: StoredWeights,
    metadata: Mapping[str, str],
    prefix: str,
) -> None:
    """`report` is told the bytes that were written."""
    written = 0
    if path.suffix == ".npz":

        def groups() -> Iterator[dict[str, Tensor]]:
            nonlocal written
            for conversion in conversions:
                yield conversion.to_theirs([weights.read(name) for name in conversion.ours])
                written += num_bytes_of(conversion.theirs)
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
            metadata={"format": "pt", **metadata},
        )
        stream.finish()


def _slice_of(conversion: Conversion, name: str, *, weights: StoredWeights) -> Iterator[Tensor]:
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
