"""`vitscale import` and `vitscale export`: weights from and to other projects. Bodies import what they need when they run."""

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import typer

from vitscale.config import UsageError
from vitscale.config.presentation import present_errors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vitscale.train.equality import Comparison
    from vitscale.train.export import ExportPlan
    from vitscale.train.import_weights import Imported, ImportPlan
    from vitscale.weights.targets import Format


class Layout(StrEnum):
    """Whose names exported tensors get."""

    TIMM = "timm"
    HF = "hf"
    VIT_JAX = "vit_jax"
    BIG_VISION = "big_vision"
    ONNX = "onnx"


class Weights(StrEnum):
    """Which of a checkpoint's weights."""

    MODEL = "model"
    EMA = "ema"


ToleranceOption = Annotated[
    float | None,
    typer.Option(
        "--tolerance", metavar="SHARE", min=0, help="Largest accepted difference of outputs, as a share of the largest. Default: 1e-5."
    ),
]
MemoryOption = Annotated[
    str, typer.Option("--max-memory", metavar="SIZE", help="What tensors may take beside the program itself, for example 1.5GiB.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be read, assumed, compared and written, and write nothing.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]


class _ImportOptions(TypedDict):
    overrides: list[str]
    drop: list[str]
    allow_pickle: bool
    tolerance: float
    max_memory_bytes: int


class _ExportOptions(TypedDict):
    layout: "Format"
    weights: Literal["model", "ema"]
    output: str | None
    tolerance: float
    max_memory_bytes: int


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(MiB|GiB)")
_UNITS = {"MiB": 2**20, "GiB": 2**30}


def register(app: typer.Typer) -> None:
    """Add the commands to `vitscale`."""
    app.command(name="import", epilog="Example: vitscale import B_16.npz imported/b16, then init_from.path: imported/b16")(import_)
    app.command(epilog="Example: vitscale export runs/base --layout timm")(export)


def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="An .npz or safetensors file, or a folder of timm or Hugging Face.")],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="The new folder, to be used like a run directory.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[a.b=c ...]", help="What the file does not tell, for example model.num_heads=12.")
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="PATTERN", help="Names that are no part of the model, for example 'aux.*'. Repeatable."),
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read a file of torch.save: tensors only, in a process of its own.")
    ] = False,
    tolerance: ToleranceOption = None,
    max_memory: MemoryOption = "4GiB",
    dry_run: DryRunOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a checkpoint of another project's weights, for init_from, evaluate and export.

    Reads vit_jax and big_vision .npz, and what timm, Hugging Face and the authors keep of ViT, DeiT, BEiT, MAE, DINOv2, DINOv3, EVA-02,
    SigLIP, Swin, SwinV2 and Hiera. The same image is given to the model here and to
    the project's formulas, and its library where that is installed; a larger difference of outputs than --tolerance is refused.
    """
    with present_errors(debug=debug):
        from pathlib import Path

        from vitscale import api
        from vitscale.config.progress import progress
        from vitscale.train.equality import DEFAULT_TOLERANCE

        given: _ImportOptions = {
            "overrides": overrides or [],
            "drop": drop or [],
            "allow_pickle": allow_pickle,
            "tolerance": DEFAULT_TOLERANCE if tolerance is None else tolerance,
            "max_memory_bytes": parse_size(max_memory),
        }
        if dry_run:
            _print_import_plan(source, api.plan_import(Path(source), Path(output), **given))
            return
        imported = api.import_weights(Path(source), Path(output), watch=progress, **given)
        print(f"{source}: {imported.layout}")
        _print_found(imported)
        _print_comparisons(imported.comparisons)
        print(f"{imported.folder}: use it as init_from.path, or with evaluate --checkpoint; its model is")
        _print_model(imported.model)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory (its newest checkpoint), one checkpoint, or an import.")],
    layout: Annotated[Layout, typer.Option(help="Whose names and files; onnx: a graph.")] = Layout.TIMM,
    weights: Annotated[Weights, typer.Option(help="The trained weights or their moving average.")] = Weights.MODEL,
    output: Annotated[str | None, typer.Option(metavar="FOLDER", help="Default: export/LAYOUT in the run directory.")] = None,
    tolerance: ToleranceOption = None,
    max_memory: MemoryOption = "4GiB",
    dry_run: DryRunOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a checkpoint's weights as timm, Hugging Face transformers, vit_jax or big_vision load them, with a model card; or the model as
    a graph of ONNX.

    Whatever number of ranks wrote the checkpoint; tensor by tensor, except for a graph, which is made of the whole model. What was written
    is run beside the model here, by the project's formulas and by its library where that is installed (a graph: by onnxruntime); a larger
    difference of outputs than --tolerance is refused.
    """
    with present_errors(debug=debug):
        from vitscale import api
        from vitscale.config.progress import progress
        from vitscale.train.equality import DEFAULT_TOLERANCE

        given: _ExportOptions = {
            "layout": layout.value,
            "weights": weights.value,
            "output": output,
            "tolerance": DEFAULT_TOLERANCE if tolerance is None else tolerance,
            "max_memory_bytes": parse_size(max_memory),
        }
        if dry_run:
            _print_export_plan(api.plan_export(run, **given))
            return
        exported = api.export(run, watch=progress, **given)
        for note in exported.notes:
            print(f"otherwise in the programs of {exported.layout}: {note}")
        _print_comparisons(exported.comparisons)
        print(f"{exported.folder}: {exported.num_tensors} tensors, {exported.num_bytes / 2**20:.1f} MiB")


def parse_size(text: str) -> int:
    """Bytes of a size such as 512MiB or 1.5GiB. Raises `UsageError`."""

    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--max-memory: {text!r} is no size; write it as 512MiB or 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def _print_found(found: "Imported | ImportPlan") -> None:
    for sentence in found.assumed:
        print(f"assumed: {sentence}")
    if found.set_aside:
        print(f"no part of the model: {len(found.set_aside)} tensors, such as {', '.join(found.set_aside[:3])}")


def _print_comparisons(comparisons: "Iterable[Comparison]") -> None:
    for comparison in comparisons:
        print(comparison.describe())


def _print_planned_comparisons(comparisons: "Iterable[Comparison]") -> None:
    for comparison in comparisons:
        print(comparison.describe() if comparison.skipped else f"against {comparison.against}: would be compared")


def _print_model(model: dict[str, Any]) -> None:
    from vitscale.config import dump_yaml

    print(dump_yaml(model), end="")


def _print_import_plan(source: str, plan: "ImportPlan") -> None:
    from vitscale.config.progress import format_size

    sizes = ", ".join(f"{path.name} ({format_size(path.stat().st_size)})" for path in plan.files)
    print(f"{source}: {plan.layout}, {plan.num_tensors} tensors of the model, in {sizes}")
    _print_found(plan)
    _print_planned_comparisons(plan.comparisons)
    print(plan.room.describe())
    parts = f"{plan.num_parts} files" if plan.num_parts > 1 else "1 file"
    print(f"{plan.folder}: would hold one checkpoint, its weights in {parts}; its model would be")
    _print_model(plan.model)
    print("dry run: nothing was written, and no value was read")


def _print_export_plan(plan: "ExportPlan") -> None:
    from vitscale.config.progress import format_size

    print(f"{plan.checkpoint}: to {plan.layout}, {plan.num_tensors} tensors; its model is")
    _print_model({"model": plan.model})
    for name in plan.left_behind:
        print(f"left behind: {name}, which the layout does not hold")
    for note in plan.notes:
        print(f"otherwise in the programs of {plan.layout}: {note}")
    _print_planned_comparisons(plan.comparisons)
    print(plan.room.describe())
    older = ", in place of the export there" if plan.replaces else ""
    print(f"{plan.folder}: would hold {', '.join(plan.files)}{older}; about {format_size(plan.num_bytes)} of weights")
    print("dry run: nothing was written, and no value was read")
