"""`vitscale checkpoint`: look at, verify and delete checkpoints. Bodies import what they need when they run."""

from pathlib import Path
from typing import Annotated

import typer

from vitscale.config.presentation import present_errors

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Look at, verify and delete checkpoints.",
)

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run directory, its checkpoints directory, or one checkpoint.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]


@app.command(name="list", epilog="Example: vitscale checkpoint list runs/base")
def list_(run: RunArgument, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List checkpoints, newest first, also unfinished and damaged ones with the reason, and why each is kept.

    Sizes are compared with the manifests; `verify` reads every byte.
    """
    with present_errors(debug=debug):
        import dataclasses
        import json

        from vitscale.checkpoint.describe import find_folders, list_checkpoints, read_policy
        from vitscale.checkpoint.tables import print_list
        from vitscale.config import ConfigError

        folders = find_folders(run)
        try:
            policy = read_policy(run)
        except ConfigError as error:
            typer.echo(f"what is kept, and why, is not shown: {error}", err=True)
            policy = None
        listed = list_checkpoints(folders, policy=policy)
        if as_json:
            print(json.dumps([dataclasses.asdict(entry) for entry in listed], indent=2))
        else:
            print_list(listed, knows_policy=policy is not None)


@app.command(epilog="Example: vitscale checkpoint verify runs/base/checkpoints/step-00001000")
def verify(run: RunArgument, debug: DebugOption = False) -> None:
    """Read every byte of the checkpoints and compare it with what was saved.

    Exit code: 0 when all are whole, 20 when one is damaged or none is whole. Leftovers of unfinished saves are no damage.
    """
    with present_errors(debug=debug):
        from vitscale.checkpoint.describe import Verified, bytes_to_verify, find_folders, verify_folder
        from vitscale.config import CheckpointError
        from vitscale.config.progress import format_size, progress

        folders = find_folders(run)
        verified: list[Verified] = []
        with progress("verifying", total=bytes_to_verify(folders), unit="bytes") as report:
            for entry in folders:
                before = sum(found.num_bytes for found in verified)
                verified.append(verify_folder(entry, report=lambda done, before=before: report(before + done)))  # type: ignore[misc]
        for found in verified:
            print(f"{Path(found.path).name}: {found.problem or f'whole, {format_size(found.num_bytes)}'}")
        num_damaged = sum(found.state == "damaged" for found in verified)
        num_whole = sum(found.state == "whole" for found in verified)
        if num_damaged or not num_whole:
            remedy = "Training resumes from the newest whole one" if num_whole else "Nothing here can be resumed from"
            raise CheckpointError(f"{run}: {num_damaged} of {len(verified)} checkpoints are damaged, {num_whole} whole. {remedy}.")


@app.command(epilog="Example: vitscale checkpoint prune runs/base --keep 1 --dry-run")
def prune(
    run: RunArgument,
    keep: Annotated[int | None, typer.Option(min=1, help="Newest ones that stay. Default: the run's checkpoint.keep.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted, and delete nothing.")] = False,
    debug: DebugOption = False,
) -> None:
    """Delete checkpoints by the run's own rules: what it keeps for ever and its best ones stay.

    The newest checkpoint that is whole to the last byte always stays. Refused while the run is training, which prunes by itself.
    """
    with present_errors(debug=debug):
        import contextlib

        from vitscale.checkpoint.describe import read_policy
        from vitscale.checkpoint.discover import checkpoints_folder, find_newest
        from vitscale.checkpoint.layout import MANIFEST, parse_step_folder
        from vitscale.config import CheckpointError, UsageError
        from vitscale.train.run_dir import RunDirectory
        from vitscale.train.run_lock import LOCK, exclusive

        if (run / MANIFEST).is_file():
            raise UsageError(f"{run}: this is one checkpoint; give the run directory or the checkpoints directory to prune")
        policy = read_policy(run, keep=keep)
        if policy is None:
            raise UsageError(f"{run}: no configuration lies with these checkpoints, so say how many to keep: --keep K")
        folder = checkpoints_folder(run)
        root = folder.absolute().parent
        with exclusive(RunDirectory(root=root)) if (root / LOCK).exists() and not dry_run else contextlib.nullcontext():
            newest = find_newest(folder).checkpoint
            entry = None if newest is None else parse_step_folder(newest)
            if entry is None:
                raise CheckpointError(f"{folder}: no checkpoint here is whole, so nothing is deleted; delete by hand what you do not need")
            if dry_run:
                doomed = [found.path for found in policy.doomed(folder, saved=entry.step)]
            else:
                doomed = policy.prune(folder, saved=entry.step)
        for path in doomed:
            print(f"{'would delete' if dry_run else 'deleted'} {path.name}")
        print(f"{len(doomed)} {'to delete' if dry_run else 'deleted'}; the newest whole one is {entry.path.name}")


@app.command(epilog="Example: vitscale checkpoint describe runs/base --json")
def describe(run: RunArgument, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show what a checkpoint (of a run: its newest whole one) says of itself, and every tensor in it."""
    with present_errors(debug=debug):
        import dataclasses
        import json

        from vitscale.checkpoint.describe import describe_checkpoint, find_folders
        from vitscale.checkpoint.discover import resolve_checkpoint
        from vitscale.checkpoint.tables import print_description

        find_folders(run)  # says what a path without checkpoints is
        described = describe_checkpoint(resolve_checkpoint(run, deep=False))
        if as_json:
            print(json.dumps(dataclasses.asdict(described), indent=2))
        else:
            print_description(described)
