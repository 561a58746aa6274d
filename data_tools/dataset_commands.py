"""The commands of `vitscale-data` for data sets that exist. Bodies import what they need when they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vitscale.data.dataset import Dataset

    from .dedup import DedupRequest, DedupSummary
    from .exclude import ExcludeSummary
    from .index_dataset import IndexPlan, IndexSummary
    from .kept_results import KeptFolder
    from .stats import Stats
    from .verify import VerifyReport

Debug = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")]
DatasetArgument = Annotated[str, typer.Argument(metavar="DATASET", help="Folder of a packed or indexed data set.")]
Work = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where to keep what is done until all is: the same command goes on from it after a kill. Default: the user's cache.",
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes. Default: as many as pay, at most 16.")]

_THRESHOLD_HELP = (
    "Bits of 64 in which near duplicates may differ. Meant for photographs: plain pictures, such as Fashion-MNIST's, resemble each"
    " other by the thousand; look at --sheet, and use 0 or 1 there."
)


def register(app: typer.Typer) -> None:
    """Add the commands to `vitscale-data`."""
    for command in (index, verify, stats, show, dedup, exclude):
        app.command()(command)


def index(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder or address (s3://...) that holds WebDataset tars.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where indexes and manifest go. Default: beside the tars of a local folder.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Class names in label order, one a line. Default: the labels' numbers.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="What the manifest calls the data: train, test, ...")] = None,
    allow_pickles: Annotated[bool, typer.Option("--allow-pickles", help="Index tars with pickled members; they are never read.")] = False,
    allow_duplicate_keys: Annotated[
        bool, typer.Option("--allow-duplicate-keys", help="Accept that samples of different tars have the same key.")
    ] = False,
    workers: Workers = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Make WebDataset tars trainable as they lie there: an index beside each, and a manifest.

    A run that was killed goes on where it was when it is started again.
    """
    from vitscale.config.presentation import present_errors

    with present_errors(debug=debug):
        from vitscale.config.progress import progress

        from .index_dataset import IndexRequest, plan_index, read_class_names, write_index
        from .jobs import default_workers

        request = IndexRequest(
            source=source,
            output=output,
            classes=None if classes is None else read_class_names(classes),
            split=split,
            allow_pickles=allow_pickles,
            allow_duplicate_keys=allow_duplicate_keys,
        )
        plan = plan_index(request)
        if dry_run:
            _print_index_plan(plan)
            return
        with progress("indexing, in MiB", total=plan.num_bytes >> 20) as report:
            workers = workers or default_workers(plan.num_bytes)
            summary = write_index(plan, workers=workers, report=lambda num_bytes: report(num_bytes >> 20))
        _print_index_summary(summary)


def verify(
    dataset: DatasetArgument,
    sample: Annotated[float, typer.Option(min=0.0, max=1.0, metavar="FRACTION", help="Check this share of the samples.")] = 1.0,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every checked image as well.")] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the findings there.")] = None,
    work: Work = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Check a data set: every byte, or a share of the samples. Exit code 10 where anything is wrong.

    A full check compares each tar and index with the manifest's sha256, the tar's members with the index, and parses every
    sample. It changes nothing. A check that was killed goes on where it was when the same command is given again.
    """
    from vitscale.config.presentation import present_errors

    with present_errors(debug=debug):
        from vitscale.config import DataError
        from vitscale.config.progress import progress
        from vitscale.data.dataset import open_unchecked

        from .atomic import check_output, output_errors
        from .verify import verify_dataset, write_report

        opened = open_unchecked(dataset)
        if dry_run:
            _print_dry_run("check", opened, share=sample, outputs=[json])
            return
        if json is not None:
            check_output(json)
        num_workers = workers or _workers_for(opened, share=sample)
        with _kept("verify", opened, work=work, options={"sample": sample, "decode": decode}) as kept:
            with progress("verifying", total=opened.num_samples) as report:
                found = verify_dataset(opened, fraction=sample, decodes=decode, kept=kept, workers=num_workers, report=report)
            if json is not None:
                with output_errors(json):
                    write_report(found, json)
        _print_findings(found)
        if json is not None:
            typer.echo(f"written: {json}")
        if not found.is_sound:
            num_bad = sum(bool(shard.findings) for shard in found.shards)
            raise DataError(
                f"{dataset}: {num_bad} of {len(found.shards)} shards are damaged, with {found.num_damaged} samples that cannot be used. "
                "Restore these files from a copy or write them again. To train without the samples: vitscale-data exclude "
                f"{dataset} OUTPUT --damaged{' --decode' * decode}."
            )


def _kept(command: str, dataset: Dataset, *, work: Path | None, options: dict[str, object]) -> AbstractContextManager[KeptFolder]:
    """Where this very command keeps what is done: below `work`, or in the user's cache."""
    from .kept_results import cached_folder, kept_folder, work_name

    name = work_name(command, dataset, options=options)
    return cached_folder(name, say=_say) if work is None else kept_folder(work / name, say=_say)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _workers_for(dataset: Dataset, *, share: float = 1.0, cost: int = 1) -> int:
    """As many processes as pay; `cost` is how many times longer than plain reading it takes."""
    from .jobs import default_workers

    return default_workers(int(sum(shard.bytes for shard in dataset.shards) * share) * cost)


def _print_dry_run(what: str, dataset: Dataset, *, share: float, outputs: list[Path | None]) -> None:
    count = str(dataset.num_samples) if share == 1.0 else f"about {dataset.num_samples * share:.0f} of {dataset.num_samples}"
    typer.echo(f"would {what}, and did not (--dry-run): {count} samples in {len(dataset.shards)} shards of {dataset.storage.root}")
    names = [str(path) for path in outputs if path is not None]
    typer.echo(f"would write: {' and '.join(names) or 'nothing'}")


def _print_findings(found: VerifyReport) -> None:
    for shard in found.shards:
        state = "damaged" if shard.findings else "ok"
        typer.echo(f"{shard.name}: {state}, {shard.num_checked} of {shard.num_samples} samples checked, {shard.num_damaged} unusable")
        for finding in shard.findings:
            typer.echo(f"  {finding}")
    num_checked = sum(shard.num_checked for shard in found.shards)
    typer.echo(f"{found.root}: {num_checked} samples of {len(found.shards)} shards checked in {found.seconds:.1f} s")


def stats(
    dataset: DatasetArgument,
    sample: Annotated[float, typer.Option(min=0.0, max=1.0, metavar="FRACTION", help="Measure this share of the samples.")] = 1.0,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything that was counted there.")] = None,
    plots: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Draw histograms there, as PNG.")] = None,
    work: Work = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Measure a data set: sizes, classes, mean and std of the channels, duplicate keys, proportions of the images.

    It changes nothing. A run that was killed goes on where it was when the same command is given again.
    """
    from vitscale.config.presentation import present_errors

    with present_errors(debug=debug):
        from vitscale.config.progress import progress
        from vitscale.data.dataset import open_dataset

        from .atomic import check_output, output_errors
        from .stats import measure, write_json
        from .stats_plots import require_matplotlib, write_plots

        if plots is not None:
            require_matplotlib()
        opened = open_dataset(dataset)
        if dry_run:
            _print_dry_run("measure", opened, share=sample, outputs=[json, plots])
            return
        for path in (json, None if plots is None else plots / "classes.png"):
            if path is not None:
                check_output(path)
        num_workers = workers or _workers_for(opened, share=sample, cost=15)
        outputs = [(path, write) for path, write in ((json, write_json), (plots, write_plots)) if path is not None]
        with _kept("stats", opened, work=work, options={"sample": sample}) as kept:
            with progress("measuring", total=opened.num_samples) as report:
                found = measure(opened, fraction=sample, kept=kept, workers=num_workers, report=report)
            for path, write in outputs:
                with output_errors(path):
                    write(found, path)
        _print_stats(found)
        for path, _ in outputs:
            typer.echo(f"written: {path}")


def _print_stats(found: Stats) -> None:
    from .stats_table import stats_rows

    rows = stats_rows(found)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        typer.echo(f"{name:{width}}  {text}")


def show(
    dataset: DatasetArgument,
    output: Annotated[Path, typer.Option(metavar="PNG", help="The picture to write.")],
    num: Annotated[int, typer.Option(min=1, max=4096, help="Samples to show.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Decides which samples.")] = 0,
    config: Annotated[
        Path | None, typer.Option(metavar="RUN.yaml", help="Show each sample before and after this run's transforms.")
    ] = None,
    views: Annotated[int, typer.Option(min=1, max=64, help="With --config: how often each sample is transformed.")] = 6,
    workers: Workers = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Draw random samples with labels and captions; with --config also as a run would see them, bit for bit.

    It reads just these samples and writes one picture, complete or not at all: a run that was killed is simply repeated.
    """
    from vitscale.config.presentation import present_errors

    with present_errors(debug=debug):
        from vitscale.config.progress import progress
        from vitscale.data.dataset import open_dataset

        from .atomic import check_output, output_errors
        from .contact_sheet import write_sheet
        from .show import draw_samples, random_samples

        made_views = None
        if config is not None:
            from .run_views import run_views

            made_views = run_views(config, num_views=views)
        opened = open_dataset(dataset)
        sample_ids = random_samples(opened, num=num, seed=seed)
        if dry_run:
            typer.echo(f"would draw {len(sample_ids)} samples of {dataset} into {output}, and did not (--dry-run)")
            return
        check_output(output)
        with progress("drawing", total=len(sample_ids)) as report:
            sheet = draw_samples(opened, sample_ids=sample_ids, views=made_views, workers=workers or 1, report=report)
        with output_errors(output):
            write_sheet(sheet, output)
        typer.echo(f"{output}: {len(sample_ids)} samples of {dataset}, {sheet.width} x {sheet.height} pixels")


def dedup(
    dataset: DatasetArgument,
    output: Annotated[Path, typer.Argument(metavar="LIST", help="The removal list to write; pairs go to LIST.pairs.tsv.")],
    against: Annotated[
        list[str] | None, typer.Option(metavar="EVAL", help="Evaluation data set whose images are to go from DATASET. Repeatable.")
    ] = None,
    threshold: Annotated[int, typer.Option(min=0, max=11, help=_THRESHOLD_HELP)] = 6,
    only_against: Annotated[bool, typer.Option("--only-against", help="Leave duplicates within DATASET alone.")] = False,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw pairs, the least alike first.")] = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """List the samples of DATASET that repeat others: the same bytes, the same pixels, or nearly the same picture.

    Of duplicates the first stays; what an evaluation set holds goes. Nothing is removed: look at the list, then use it
    with `vitscale-data exclude --keys LIST` or `vitscale-data pack --exclude LIST`. A run that was killed goes on where it was
    when it is started again.
    """
    from vitscale.config.presentation import present_errors

    with present_errors(debug=debug):
        from vitscale.config.progress import progress
        from vitscale.data.dataset import open_dataset

        from .atomic import check_output
        from .dedup import DedupRequest, check_request
        from .dedup import dedup as find_duplicates

        request = DedupRequest(
            dataset=open_dataset(dataset),
            against=tuple(open_dataset(path) for path in against or ()),
            output=output,
            max_distance=threshold,
            compares_own=not only_against,
            sheet=sheet,
        )
        check_request(request)
        if dry_run:
            typer.echo(f"would compare, and did not (--dry-run): {request.num_images} images of {1 + len(request.against)} data sets")
            typer.echo(f"would write: {request.output} and {request.pairs_path}" + (f" and {sheet}" if sheet else ""))
            return
        if sheet is not None:
            check_output(sheet)
        num_workers = workers or max(_workers_for(part, cost=20) for part in (request.dataset, *request.against))
        with progress("looking at images", total=request.num_images) as report:
            summary = find_duplicates(request, workers=num_workers, report=report, say=_say)
        _print_duplicates(summary, request=request)


def _print_duplicates(summary: DedupSummary, *, request: DedupRequest) -> None:
    texts = {"bytes": "the same bytes", "pixels": "the same pixels", "near": f"at most {request.max_distance} bits apart"}
    for is_other, where in ((True, "as an image of an evaluation set"), (False, "as an earlier image")):
        for kind, text in texts.items():
            typer.echo(f"{text} {where}: {summary.counts.get((kind, is_other), 0)}")
    if summary.num_unreadable:
        typer.echo(f"note: {summary.num_unreadable} images cannot be decoded; only their bytes were compared.")
    typer.echo(f"{request.output}: {summary.num_removed} of {request.dataset.num_samples} samples to remove, in {summary.seconds:.1f} s")
    typer.echo(f"next: vitscale-data exclude {request.dataset.index_storage.root} OUTPUT --keys {request.output}")


def exclude(
    dataset: DatasetArgument,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder for the new indexes and manifest.")],
    keys: Annotated[Path | None, typer.Option(metavar="FILE", help="Keys of samples to leave out, one a line; # starts a comment.")] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Leave out samples that cannot be read.")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="With --damaged: also images that cannot be decoded.")] = False,
    workers: Workers = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Make a data set without some samples of DATASET: new indexes for the same tars, which stay as they are.

    A run that was killed goes on where it was when it is started again.
    """
    from vitscale.config.presentation import present_errors

    with present_errors(debug=debug):
        from vitscale.config import UsageError
        from vitscale.config.progress import progress
        from vitscale.data.dataset import open_dataset, open_unchecked

        from .exclude import exclude_samples
        from .selection import read_removals

        if keys is None and not damaged:
            raise UsageError("nothing to leave out: give --keys FILE, --damaged, or both.")
        if decode and not damaged:
            raise UsageError("--decode has no effect without --damaged. Add it, or leave the option out.")
        names = frozenset() if keys is None else read_removals(keys).names
        opened = open_unchecked(dataset) if damaged else open_dataset(dataset)
        with progress("looking through", total=opened.num_samples) as report:
            summary = exclude_samples(
                opened,
                keys=names,
                drops_damaged=damaged,
                decodes=decode,
                output=None if dry_run else output,
                workers=workers or _workers_for(opened, cost=15 if decode else 1),
                report=report,
                say=_say,
            )
        _print_exclusion(summary, output=output, is_dry=dry_run)


def _print_exclusion(summary: ExcludeSummary, *, output: Path, is_dry: bool) -> None:
    if summary.unknown_keys:
        typer.echo(f"note: {len(summary.unknown_keys)} keys name no sample here, for example {summary.unknown_keys[0]!r}.")
    manifest = summary.manifest
    typer.echo(f"left out: {summary.num_listed} samples by key, {summary.num_damaged} that cannot be read")
    prefix = "would write, and did not (--dry-run): " if is_dry else ""
    typer.echo(f"{prefix}{output}: {manifest.num_samples} samples in {len(manifest.shards)} shards, which lie in {manifest.shards_root}")
    typer.echo(f"done in {summary.seconds:.1f} s")
    if not is_dry:
        typer.echo(f"next: vitscale-data verify {output}, or vitscale train CONFIG data.path={output}")


def _print_index_plan(plan: IndexPlan) -> None:
    done = f", {plan.num_finished} of them indexed by an earlier run" if plan.num_finished else ""
    typer.echo(
        f"would index, and did not (--dry-run): {len(plan.jobs)} tars, {plan.num_bytes / 2**20:.1f} MiB, of {plan.storage.root}{done}"
    )
    typer.echo(f"would write: an index per tar and the manifest in {plan.output}")


def _print_index_summary(summary: IndexSummary) -> None:
    manifest = summary.manifest
    size = sum(shard.bytes for shard in manifest.shards) / 2**20
    classes = "no classes" if manifest.classes is None else f"{len(manifest.classes)} classes"
    for note in summary.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{summary.output}: {manifest.num_samples} samples of {classes} in {len(manifest.shards)} shards, {size:.1f} MiB")
    typer.echo(f"members: {', '.join(manifest.members)}")
    typer.echo(f"indexed in {summary.seconds:.1f} s")
    typer.echo(f"next: vitscale-data verify {summary.output}, or vitscale train CONFIG data.path={summary.output}")
