"""The options of packing, for `vitscale-data pack` and for packing over a cluster, and what both print."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shared_options import with_options

if TYPE_CHECKING:
    from .pack import PackSummary
    from .plan import PackPlan, PackRequest


class SourceName(StrEnum):
    """The sources, named here too so that `--help` need not load them; a test compares with the table."""

    FASHION_MNIST = "fashion-mnist"
    IMAGE_FOLDER = "image-folder"
    IDX = "idx"
    TABLE = "table"
    ARROW = "arrow"
    TARS = "tars"


class SampleOrder(StrEnum):
    """How samples are laid out over the shards."""

    SHUFFLED = "shuffled"
    SOURCE = "source"


class CheckDepth(StrEnum):
    """How closely an image is looked at."""

    DECODE = "decode"
    HEADER = "header"


class ImageFormat(StrEnum):
    """What images can be transcoded to."""

    JPEG = "jpeg"


_SOURCE_HELP = (
    "image-folder: a subfolder of images per class. table: a CSV, TSV or Parquet file of paths or urls. arrow: a data set of"
    " Hugging Face's datasets on disk. tars: WebDataset tars. idx: files like MNIST's. fashion-mnist: these with class names."
)
_LAYOUT, _IMAGES, _LABELS, _CHOICE = "Shards", "Images", "Columns and classes", "Choice of samples"

SourceArgument = Annotated[SourceName, typer.Argument(metavar="SOURCE", help=_SOURCE_HELP)]
InputArgument = Annotated[Path, typer.Argument(metavar="INPUT", help="Folder with the source's files; for a table, the file.")]
OutputArgument = Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to make. It appears complete or not at all.")]

SplitOption = Annotated[
    str | None,
    typer.Option(rich_help_panel=_CHOICE, help="Pack this split only, into OUTPUT itself. Default: all, into OUTPUT/train, OUTPUT/test."),
]
ExcludeOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=_CHOICE,
        help="Text file of samples to leave out, one a line (# comments): keys as packed (vitscale-data dedup writes them), or origins"
        " as messages name them, such as the path in an image folder.",
    ),
]
ValFractionOption = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=_CHOICE,
        help="Make OUTPUT/train and OUTPUT/val; this share validates, chosen by a hash of each sample's origin: it keeps its side as"
        " the source grows.",
    ),
]
ValPerClassOption = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=_CHOICE, help="The same with this many samples of each class in OUTPUT/val.")
]
SkipUnusableOption = Annotated[
    bool,
    typer.Option(
        "--skip-unusable",
        rich_help_panel=_CHOICE,
        help="Leave out images that cannot be packed, and list them in skipped.txt. Default: refuse, after naming them all.",
    ),
]

SamplesPerShardOption = Annotated[int | None, typer.Option(min=1, rich_help_panel=_LAYOUT, help="Samples in each shard.")]
ShardMebibytesOption = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=_LAYOUT, help="Size of each shard at most, before transcoding. Default: 64.")
]
OrderOption = Annotated[
    SampleOrder, typer.Option(rich_help_panel=_LAYOUT, help="Lay samples out in one global random order, or as the source has them.")
]
SeedOption = Annotated[int | None, typer.Option(rich_help_panel=_LAYOUT, help="Seed of the shuffled order. Default: 0.")]

CheckOption = Annotated[
    CheckDepth | None,
    typer.Option(
        rich_help_panel=_IMAGES,
        help="decode: every image is decoded to see that it is whole. header: its format and size only, several times as fast."
        " Default: decode.",
    ),
]
TranscodeOption = Annotated[
    ImageFormat | None,
    typer.Option(
        rich_help_panel=_IMAGES,
        help="Encode every image anew as a baseline JPEG: upright as its EXIF orientation says, 8-bit gray or RGB, transparency on"
        " white, first frame. Default: keep the bytes.",
    ),
]
QualityOption = Annotated[
    int | None, typer.Option(min=1, max=100, rich_help_panel=_IMAGES, help="JPEG quality of --transcode. Default: 90.")
]
MaxShortSideOption = Annotated[
    int | None,
    typer.Option(min=1, rich_help_panel=_IMAGES, help="With --transcode: shrink images whose shorter side is longer than this."),
]
MaxSideOption = Annotated[
    int | None,
    typer.Option(min=1, rich_help_panel=_IMAGES, help="With --transcode: shrink images whose longer side is longer than this."),
]

ImageColumnOption = Annotated[
    str | None, typer.Option(rich_help_panel=_LABELS, help="Column with the image: its path or url in a table. arrow finds its only one.")
]
LabelColumnOption = Annotated[
    str | None, typer.Option(rich_help_panel=_LABELS, help="Column with the class, a name or a number. arrow finds its only one.")
]
LabelsColumnOption = Annotated[
    str | None,
    typer.Option(rich_help_panel=_LABELS, help="Column with any number of classes: a list, or in text with ; between them."),
]
CaptionColumnOption = Annotated[str | None, typer.Option(rich_help_panel=_LABELS, help="Column with a caption, packed as member txt.")]
ImageRootOption = Annotated[
    Path | None, typer.Option(rich_help_panel=_LABELS, help="Where a table's relative paths count from. Default: the table's folder.")
]
UrlRootOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PREFIX=FOLDER",
        rich_help_panel=_LABELS,
        help="A table's urls that start with PREFIX lie in FOLDER, under the rest of the url. Repeatable. Nothing is downloaded.",
    ),
]
ClassesOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=_LABELS,
        help="File with the classes in the order of their indices: a name a line, or JSON, a list or {name: index} (.json). Maps the"
        " source's names; names its numbers where it has no names.",
    ),
]
SkipUnknownOption = Annotated[
    bool,
    typer.Option(
        "--skip-unknown",
        rich_help_panel=_LABELS,
        help="Leave out samples without a class, or of one that --classes lacks (of several classes, those that it lacks).",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]


def make_request(values: Mapping[str, Any]) -> PackRequest:
    """The request of the command's parameters by name. Raises `UsageError` for options that have no effect together."""
    from vitscale.config import UsageError

    from .atomic import check_local
    from .images import ImagePolicy, Transcode
    from .options import SourceOptions, parse_url_root
    from .plan import PackRequest

    for name in ("input_path", "output"):
        check_local(values[name])
    if values["seed"] is not None and values["order"] == "source":
        raise UsageError("--seed has no effect with --order source. Leave one of them out.")
    if values["transcode"] is None:
        for name in ("quality", "max_short_side", "max_side"):
            if values[name] is not None:
                raise UsageError(f"--{name.replace('_', '-')} has no effect without --transcode jpeg. Add it, or leave the option out.")
    elif values["check"] is not None:
        raise UsageError("--check has no effect with --transcode, which decodes every image. Leave one of them out.")
    transcode = (
        None
        if values["transcode"] is None
        else Transcode(quality=values["quality"] or 90, max_short_side=values["max_short_side"], max_side=values["max_side"])
    )
    columns = ("image_column", "label_column", "labels_column", "caption_column", "image_root")
    return PackRequest(
        source=str(values["source"]),
        input=values["input_path"],
        output=values["output"],
        source_options=SourceOptions(
            **{name: values[name] for name in columns}, url_roots=tuple(parse_url_root(text) for text in values["url_root"] or ())
        ),
        split=values["split"],
        samples_per_shard=values["samples_per_shard"],
        shard_mebibytes=values["shard_mebibytes"],
        order=str(values["order"]),  # type: ignore[arg-type]
        seed=values["seed"] or 0,
        policy=ImagePolicy(check=str(values["check"] or "decode"), transcode=transcode),  # type: ignore[arg-type]
        unusable="skip" if values["skip_unusable"] else "refuse",
        classes=values["classes"],
        unknown_classes="skip" if values["skip_unknown"] else "refuse",
        exclude=values["exclude"],
        val_fraction=values["val_fraction"],
        val_per_class=values["val_per_class"],
    )


def _pack_options(
    source: SourceArgument,
    input_path: InputArgument,
    output: OutputArgument,
    split: SplitOption = None,
    exclude: ExcludeOption = None,
    val_fraction: ValFractionOption = None,
    val_per_class: ValPerClassOption = None,
    skip_unusable: SkipUnusableOption = False,
    check: CheckOption = None,
    transcode: TranscodeOption = None,
    quality: QualityOption = None,
    max_short_side: MaxShortSideOption = None,
    max_side: MaxSideOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    labels_column: LabelsColumnOption = None,
    caption_column: CaptionColumnOption = None,
    image_root: ImageRootOption = None,
    url_root: UrlRootOption = None,
    classes: ClassesOption = None,
    skip_unknown: SkipUnknownOption = False,
    samples_per_shard: SamplesPerShardOption = None,
    shard_mebibytes: ShardMebibytesOption = None,
    order: OrderOption = SampleOrder.SHUFFLED,
    seed: SeedOption = None,
) -> None:
    """Read for its signature only."""


with_pack_options = with_options(_pack_options, name="request_values")
"""Gives a command, besides its own options, those that say what is packed."""


@with_pack_options
def pack(
    request_values: Mapping[str, Any],
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; the bytes are the same for any number. Default: as many as pay, at most 16.")
    ] = None,
    dry_run: DryRunOption = False,
    debug: DebugOption = False,
) -> None:
    """Pack SOURCE in INPUT into tar shards with an index and a manifest in OUTPUT. Same input, same bytes.

    A pack that was interrupted goes on when the same command is given again.
    """
    from vitscale.config.presentation import present_errors

    with present_errors(debug=debug):
        from .pack import plan_pack, write_pack

        plan = plan_pack(make_request(request_values))
        run_pack(plan, write=None if dry_run else partial(write_pack, plan, workers=workers or _default_workers(plan)))


def run_pack(plan: PackPlan, *, write: Callable[..., PackSummary] | None) -> None:
    """Carry the plan out with `write(report=...)`, a progress bar and a summary; None for a dry run: show the plan."""
    from vitscale.config.progress import progress

    for note in plan.notes:
        typer.echo(note, err=True)
    if write is None:
        _print_plan(plan)
        return
    with progress(f"packing {plan.request.source}", total=plan.num_samples) as report:
        try:
            summary = write(report=report)
        except KeyboardInterrupt:
            _say_what_is_kept(plan.request.output)
            raise
    _print_summary(summary)


def _say_what_is_kept(output: Path) -> None:
    from .staging import partial_folder

    partial_path = partial_folder(output)
    if partial_path.exists():
        typer.echo(f"the shards that are whole are kept in {partial_path}: the same command goes on from them", err=True)


def _default_workers(plan: PackPlan) -> int:
    """One per core, but none that takes longer to start than to do its share."""
    import os

    policy = plan.request.policy
    mebibytes_per_second = 25 if policy.transcode is not None else 60 if policy.check == "decode" else 200
    seconds = plan.num_samples * 1e-4 + plan.num_bytes / 2**20 / mebibytes_per_second
    return max(1, min(16, len(os.sched_getaffinity(0)), int(seconds / 2)))


def _print_plan(plan: PackPlan) -> None:
    """What --dry-run shows."""
    typer.echo("would write, and did not (--dry-run):")
    for dataset in plan.datasets:
        size = f"{dataset.num_bytes / 2**20:.1f} MiB{' before transcoding' if plan.request.policy.transcode else ''}"
        count = f"{dataset.split.num_samples} samples{_of_classes(dataset.split.classes)}"
        typer.echo(f"  {plan.request.output / dataset.folder}: {count} in {len(dataset.shards)} shards, {size}")


def _print_summary(summary: PackSummary) -> None:
    """What a finished pack shows."""
    for dataset in summary.datasets:
        manifest = dataset.manifest
        size = sum(shard.bytes for shard in manifest.shards) / 2**20
        count = f"{manifest.num_samples} samples{_of_classes(manifest.classes)}"
        typer.echo(f"{dataset.path}: {count} in {len(manifest.shards)} shards, {size:.1f} MiB")
        if dataset.num_skipped:
            typer.echo(f"  skipped {dataset.num_skipped} that cannot be packed: {dataset.path}/skipped.txt lists them")
        is_transcoded = "transcode" in manifest.source
        for trait, note in (_TRANSCODED_NOTES if is_transcoded else _KEPT_NOTES).items():
            if dataset.traits.get(trait):
                typer.echo(f"  {dataset.traits[trait]} {note}")
    resumed = f", {summary.num_resumed_shards} shards kept from an interrupted pack" if summary.num_resumed_shards else ""
    if summary.has_discarded_others:
        typer.echo("shards that an interrupted pack of other input or options had left were discarded")
    typer.echo(f"packed in {summary.seconds:.1f} s{resumed}")
    typer.echo(f"next: vitscale train CONFIG data.path={summary.datasets[0].path}")


_KEPT_NOTES = {
    "rotated": "images have an EXIF orientation, which training does not apply: --transcode jpeg turns them upright",
    "animated": "images are animated: their first frame counts",
    "misnamed": "images are of another format than their names say, and are named rightly now",
}
_TRANSCODED_NOTES = {
    "rotated": "images were turned upright",
    "animated": "images are animated: their first frame was packed",
}


def _of_classes(classes: tuple[str, ...] | None) -> str:
    return "" if classes is None else f" of {len(classes)} classes"
