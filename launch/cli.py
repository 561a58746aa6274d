"""The `vitscale-launch` command. Imports of Ray, torch and the library wait inside the commands, so that `--help` answers at once."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitscale.config.presentation import present_errors
from vitscale_data_tools.pack_cli import make_request, run_pack, with_pack_options
from vitscale_data_tools.shared_options import with_options

from .chaos_plan import FaultKind

if TYPE_CHECKING:
    from vitscale.run_config import RunConfig

    from .supervise import Policy

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Start vitscale runs through Ray: on this machine, or on a cluster with --address or RAY_ADDRESS.",
)

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A run's YAML file.")]
SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's YAML file.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c ...]", help="Settings to replace, for example optim.lr=1e-3.")
]
WorkersOption = Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Number of worker processes.")]
ShardsAtATimeOption = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="Shards that are written at a time. Default: one per CPU of the cluster."),
]
AddressOption = Annotated[
    str | None, typer.Option("--address", metavar="ADDR", help="Ray cluster to join. Default: RAY_ADDRESS, else a new one on this machine.")
]
AllowChangeOption = Annotated[
    list[str] | None, typer.Option("--allow-change", metavar="KEY", help="On a resume, accept another value of this setting. Repeatable.")
]
StopAtOption = Annotated[int | None, typer.Option("--stop-at", metavar="STEP", min=1, help="Save and stop after this step (exit code 75).")]
MaxRestartsOption = Annotated[
    int, typer.Option("--max-restarts", metavar="N", min=0, help="Restarts after failures, within --refill-steps steps.")
]
RefillStepsOption = Annotated[
    int, typer.Option("--refill-steps", metavar="STEPS", min=1, help="A restart counts until so many further steps are saved.")
]
MinWorkersOption = Annotated[
    int | None,
    typer.Option(
        "--min-workers", metavar="N", min=1, help="Go on with as few as N workers when machines are lost. Default: wait for them."
    ),
]
WaitOption = Annotated[
    float, typer.Option("--wait-for-cluster", metavar="SECONDS", min=0, help="How long to wait for a lost cluster, or for room in it.")
]
FaultOption = Annotated[
    list[FaultKind] | None, typer.Option("--fault", help="A fault to do, on one rank at a time. Repeatable; each comes equally often.")
]
EveryOption = Annotated[
    float, typer.Option("--every", metavar="SECONDS", min=0, help="Pause before each fault, half as long to half as much again.")
]
RankOption = Annotated[int | None, typer.Option("--rank", metavar="R", min=0, help="Only on this rank. Default: on any.")]
SeedOption = Annotated[int, typer.Option("--seed", metavar="S", help="Decides order, ranks and pauses.")]
CountOption = Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="So many faults. Default: until the run is done.")]
ForOption = Annotated[float, typer.Option("--for", metavar="SECONDS", min=0, help="How long slow, disk-full and network last.")]
FactorOption = Annotated[float, typer.Option("--factor", metavar="X", min=1, help="How many times as long a slow rank's steps take.")]
InterfaceOption = Annotated[
    str | None, typer.Option("--interface", metavar="NAME", help="The network interface that `network` takes down, on the rank's machine.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Let disk-full fill a file system with 2 GiB or more free.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; start nothing.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traces of errors.")]


@app.callback()
def launch() -> None:
    """Keep the commands' names in the command line, whatever their number."""


def _run_options(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    workers: WorkersOption = 1,
    address: AddressOption = None,
    allow_change: AllowChangeOption = None,
    max_restarts: MaxRestartsOption = 3,
    refill_steps: RefillStepsOption = 200,
    min_workers: MinWorkersOption = None,
    wait_for_cluster: WaitOption = 600.0,
    dry_run: DryRunOption = False,
    debug: DebugOption = False,
) -> None:
    """Read for its signature only."""


with_run_options = with_options(_run_options, name="run_values")
"""Gives a command, besides its own options, those of a supervised run."""


@app.command(
    epilog="Examples: vitscale-launch train configs/pretrain/fashion_mnist_vit.yaml --workers 2"
    " | vitscale-launch train CONFIG name=trial optim.lr=1e-3 --workers 8 --address 10.0.0.1:6379"
)
@with_run_options
def train(run_values: Mapping[str, Any], stop_at: StopAtOption = None) -> None:
    """Train a run, or go on with it, in Ray Train workers.

    The same run as that of `vitscale train`: each goes on where the other stopped. When a worker, a machine or Ray itself
    dies, the workers are restarted from the newest committed checkpoint. SIGTERM, Ctrl-C and SIGUSR1 let them finish their
    step, save and stop (exit code 75); a second signal stops at once.
    """
    with present_errors(debug=run_values["debug"]):
        address = _prepare_ray(run_values["address"])
        run_config, shown = _load_run(run_values, is_local=address is None)
        policy = _policy(run_values, run_config)
        if run_values["dry_run"]:
            sys.stdout.write(shown)
            return
        from .launcher import launch_training
        from .remote import ClusterProcess

        launch_training(
            run_config,
            process=ClusterProcess(),
            policy=policy,
            address=address,
            allow_change=run_values["allow_change"] or [],
            stop_at_step=stop_at,
            debug=run_values["debug"],
        )


@app.command(
    epilog="Examples: vitscale-launch chaos configs/pretrain/fashion_mnist_vit.yaml name=rehearsal --workers 2 --fault kill --fault nan"
    " | vitscale-launch chaos CONFIG name=rehearsal --workers 8 --address 10.0.0.1:6379 --fault stop --rank 3 --count 1"
)
@with_run_options
def chaos(
    run_values: Mapping[str, Any],
    fault: FaultOption = None,
    every: EveryOption = 60.0,
    rank: RankOption = None,
    seed: SeedOption = 0,
    count: CountOption = None,
    for_seconds: ForOption = 10.0,
    factor: FactorOption = 10.0,
    interface: InterfaceOption = None,
    yes: YesOption = False,
) -> None:
    """Rehearse faults: train a run as `vitscale-launch train` does, and do faults to it meanwhile.

    At the end a table tells of each fault how it was noticed and when the run trained again, and the goodput. What the
    faults are and what the run makes of them: docs/faults.md.
    """
    with present_errors(debug=run_values["debug"]):
        address = _prepare_ray(run_values["address"])
        from .chaos_plan import ChaosPlan, check_plan, describe_faults

        run_config, shown = _load_run(run_values, is_local=address is None)
        policy = _policy(run_values, run_config)
        plan = ChaosPlan(
            kinds=tuple(dict.fromkeys(fault or [])),
            every_seconds=every,
            num_workers=run_values["workers"],
            seed=seed,
            rank=rank,
            count=count,
            seconds=for_seconds,
            factor=factor,
            interface=interface,
        )
        is_watched = run_config.watch.hang_seconds is not None
        check_plan(plan, run_dir=run_config.run_dir, is_watched=is_watched, is_local=address is None, may_fill_disk=yes)
        if run_values["dry_run"]:
            sys.stdout.write(shown + describe_faults(plan))
            return
        from .chaos import rehearse

        rehearse(
            run_config,
            plan=plan,
            policy=policy,
            address=address,
            allow_change=run_values["allow_change"] or [],
            debug=run_values["debug"],
        )


@app.command(
    epilog="Examples: vitscale-launch tune configs/sweeps/fashion_resolution.yaml"
    " | vitscale-launch tune configs/sweeps/fashion_resolution.yaml parallel_trials=1 --dry-run"
)
def tune(
    sweep: SweepArgument,
    overrides: OverridesArgument = None,
    address: AddressOption = None,
    dry_run: DryRunOption = False,
    debug: DebugOption = False,
) -> None:
    """Run every combination of a sweep's grid as a Ray Tune trial, then write a table and a plot of the results.

    The same command goes on with unfinished trials and does not repeat finished ones.
    """
    with present_errors(debug=debug):
        address = _prepare_ray(address)
        from pathlib import Path

        from .sweep import describe_trials, load_sweep

        loaded = load_sweep(Path(sweep), overrides=overrides or [])
        if dry_run:
            sys.stdout.write(describe_trials(loaded))
            return
        from .tuner import run_sweep

        run_sweep(loaded, address=address, debug=debug)


@app.command(
    epilog="Examples: vitscale-launch pack image-folder /shared/photos /shared/shards --address 10.0.0.1:6379"
    " | vitscale-launch pack table /shared/photos.csv /shared/shards --image-column path --label-column class --transcode jpeg"
)
@with_pack_options
def pack(
    request_values: Mapping[str, Any],
    workers: ShardsAtATimeOption = None,
    address: AddressOption = None,
    dry_run: DryRunOption = False,
    debug: DebugOption = False,
) -> None:
    """Pack SOURCE in INPUT into tar shards in OUTPUT over a Ray cluster: the same bytes as `vitscale-data pack` writes.

    INPUT and OUTPUT must lie on storage that all nodes share, under the same path; this is checked first. A pack that was
    interrupted goes on when the same command, or `vitscale-data pack` with the same options, is given again.
    """
    with present_errors(debug=debug):
        address = _prepare_ray(address)
        from vitscale_data_tools.plan import absolute, plan_pack

        plan = plan_pack(absolute(make_request(request_values)))
        if dry_run:
            run_pack(plan, write=None)
            return
        from functools import partial

        from .pack import pack_on_cluster

        run_pack(plan, write=partial(pack_on_cluster, plan, address=address, workers=workers))


def _prepare_ray(address: str | None) -> str | None:
    """Set what Ray reads from the environment while it is imported; returns the existing cluster to join, if there is one."""
    from .address import ray_address
    from .environment import prepare_environment

    found = ray_address(address)
    prepare_environment(local=found is None)
    return found


def _load_run(run_values: Mapping[str, Any], *, is_local: bool) -> tuple["RunConfig", str]:
    """A run's configuration and, on this machine and in a dry run, what a dry run shows: what does not fit is refused before Ray is
    started. Another cluster's machines are not known here."""
    from pathlib import Path

    from vitscale.plan.cluster import detect_cluster
    from vitscale.plan.describe import describe_run
    from vitscale.plan.plan import make_plan
    from vitscale.run_config import load_run_config

    loaded = load_run_config(Path(run_values["config"]), overrides=run_values["overrides"] or [])
    if not is_local and not run_values["dry_run"]:
        return loaded, ""
    made = make_plan(loaded, cluster=detect_cluster(device=loaded.parallel.device, world_size=run_values["workers"]))
    return loaded, describe_run(loaded, plan=made)


def _policy(run_values: Mapping[str, Any], config: "RunConfig") -> "Policy":
    from .supervise import Policy
    from .workers import allowed_workers

    num_workers = run_values["workers"]
    return Policy(
        num_workers=num_workers,
        allowed_workers=allowed_workers(num_workers=num_workers, min_workers=run_values["min_workers"], config=config),
        max_restarts=run_values["max_restarts"],
        refill_steps=run_values["refill_steps"],
        wait_seconds=run_values["wait_for_cluster"],
    )


def main() -> None:
    """Entry point."""
    app()
