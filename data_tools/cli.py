"""The `vitscale-data` command. Bodies import what they need when they run, so that `--help` answers at once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .pack import PackPlan, PackSummary

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    # Typer's own traces print local variables, and with them whatever secret they hold.
    pretty_exceptions_enable=False,
)


class SourceName(StrEnum):
    """The sources, named here too so that `--help` need not load them; a test compares with the table."""

    FASHION_MNIST = "fashion-mnist"
    IMAGE_FOLDER = "image-folder"


class SampleOrder(StrEnum):
    """How samples are laid out over the shards."""

    SHUFFLED = "shuffled"
    SOURCE = "source"


Debug = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]


def main() -> None:
    """Entry point of the console script."""
    app()


@app.callback()
def _commands() -> None:
    """Make the data sets that vitscale trains on: plain WebDataset tars with an index and a manifest."""


@app.command()
def fetch(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder that will hold the four files.")],
    debug: Debug = False,
) -> None:
    """Get Fashion-MNIST: from Debian's package, from its authors, or a small sample that comes with vitscale."""
    from vitscale.config.presentation import present_errors

    with present_errors(debug=debug):
        from .fetch import fetch_fashion_mnist

        fetch_fashion_mnist(output)
        typer.echo(f"next: vitscale-data pack fashion-mnist {output} OUTPUT")


@app.command()
def pack(
    source: Annotated[
        SourceName, typer.Argument(metavar="SOURCE", help="fashion-mnist, or image-folder (a subfolder of images per class).")
    ],
    input_folder: Annotated[Path, typer.Argument(metavar="INPUT", help="Folder with the source's files.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to make. It appears complete or not at all.")],
    split: Annotated[
        str | None, typer.Option(help="Pack this split only, into OUTPUT itself. Default: all, into OUTPUT/train, OUTPUT/test.")
    ] = None,
    samples_per_shard: Annotated[int | None, typer.Option(min=1, help="Samples in each shard.")] = None,
    shard_mebibytes: Annotated[int | None, typer.Option(min=1, help="Size of each shard at most. Default: 64.")] = None,
    order: Annotated[
        SampleOrder, typer.Option(help="Lay samples out in one global random order, or as the source has them.")
    ] = SampleOrder.SHUFFLED,
    seed: Annotated[int | None, typer.Option(help="Seed of the shuffled order. Default: 0.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; the bytes are the same for any number. Default: as many as pay, at most 16.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Pack SOURCE in INPUT into tar shards with an index and a manifest in OUTPUT. Same input, same bytes."""
    from vitscale.config import UsageError
    from vitscale.config.presentation import present_errors

    with present_errors(debug=debug):
        from .pack import PackRequest, plan_pack, write_pack
        from .progress import progress

        if seed is not None and order is SampleOrder.SOURCE:
            raise UsageError("--seed has no effect with --order source. Leave one of them out.")
        request = PackRequest(
            source=source.value,
            input=input_folder,
            output=output,
            split=split,
            samples_per_shard=samples_per_shard,
            shard_mebibytes=shard_mebibytes,
            order=order.value,
            seed=seed or 0,
        )
        plan = plan_pack(request)
        for note in plan.notes:
            typer.echo(note, err=True)
        if dry_run:
            _print_plan(plan)
            return
        with progress(f"packing {source.value}", total=plan.num_samples) as report:
            summary = write_pack(plan, workers=workers or _default_workers(plan), report=report)
        _print_summary(summary)


def _default_workers(plan: PackPlan) -> int:
    """One per core, but none that takes longer to start than to do its share (about 100 MiB a second)."""
    import os

    num_bytes = sum(dataset.num_bytes for dataset in plan.datasets)
    return max(1, min(16, len(os.sched_getaffinity(0)), num_bytes >> 28))


def _print_plan(plan: PackPlan) -> None:
    typer.echo("would write, and did not (--dry-run):")
    for dataset in plan.datasets:
        classes, size = len(dataset.split.classes), dataset.num_bytes / 2**20
        path = plan.request.output / dataset.folder
        typer.echo(f"  {path}: {dataset.split.num_samples} samples of {classes} classes in {len(dataset.shards)} shards, {size:.1f} MiB")


def _print_summary(summary: PackSummary) -> None:
    for dataset in summary.datasets:
        manifest = dataset.manifest
        size = sum(shard.bytes for shard in manifest.shards) / 2**20
        classes = len(manifest.classes or ())
        typer.echo(f"{dataset.path}: {manifest.num_samples} samples of {classes} classes in {len(manifest.shards)} shards, {size:.1f} MiB")
    typer.echo(f"packed in {summary.seconds:.1f} s")
    typer.echo(f"next: vitscale train CONFIG data.path={summary.datasets[0].path}")
