"""`vitscale import` and `vitscale export`: weights from and to other projects. Bodies import what they need when they run."""

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from vitscale.config import UsageError
from vitscale.config.presentation import present_errors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vitscale.train.equality import Comparison


class Layout(StrEnum):
    """Whose names exported tensors get."""

    TIMM = "timm"
    HF = "hf"
    VIT_JAX = "vit_jax"
    BIG_VISION = "big_vision"


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
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]

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
        from vitscale.config import dump_yaml
        from vitscale.train.equality import DEFAULT_TOLERANCE

        imported = api.import_weights(
            Path(source),
            Path(output),
            overrides=overrides or [],
            drop=drop or [],
            allow_pickle=allow_pickle,
            tolerance=DEFAULT_TOLERANCE if tolerance is None else tolerance,
            max_memory_bytes=parse_size(max_memory),
        )
        print(f"{source}: {imported.layout}")
        for sentence in imported.assumed:
            print(f"assumed: {sentence}")
        if imported.set_aside:
            print(f"no part of the model: {len(imported.set_aside)} tensors, such as {', '.join(imported.set_aside[:3])}")
        _print_comparisons(imported.comparisons)
        print(
            f"{imported.folder}: use it as init_from.path, or with evaluate --checkpoint; its model is\n{dump_yaml(imported.model)}", end=""
        )


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory (its newest checkpoint), one checkpoint, or an import.")],
    layout: Annotated[Layout, typer.Option(help="Whose names and files.")] = Layout.TIMM,
    weights: Annotated[Weights, typer.Option(help="The trained weights or their moving average.")] = Weights.MODEL,
    output: Annotated[str | None, typer.Option(metavar="FOLDER", help="Default: export/LAYOUT in the run directory.")] = None,
    tolerance: ToleranceOption = None,
    max_memory: MemoryOption = "4GiB",
    debug: DebugOption = False,
) -> None:
    """Write a checkpoint's weights as timm, Hugging Face transformers, vit_jax or big_vision load them, with a model card.

    Tensor by tensor, whatever number of ranks wrote the checkpoint. What was written is run beside the model here, by the project's
    formulas and by its library where that is installed; a larger difference of outputs than --tolerance is refused.
    """
    with present_errors(debug=debug):
        from vitscale import api
        from vitscale.train.equality import DEFAULT_TOLERANCE

        exported = api.export(
            run,
            layout=layout.value,
            weights=weights.value,
            output=output,
            tolerance=DEFAULT_TOLERANCE if tolerance is None else tolerance,
            max_memory_bytes=parse_size(max_memory),
        )
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


def _print_comparisons(comparisons: "Iterable[Comparison]") -> None:
    for comparison in comparisons:
        print(comparison.describe())
