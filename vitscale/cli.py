"""The `vitscale` command. Imports of torch and the library wait inside the commands, so that `--help` answers at once."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vitscale import checkpoint_commands, events_commands, models_commands, weights_commands
from vitscale.config.presentation import present_errors

if TYPE_CHECKING:
    from vitscale.run_config import RunConfig

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Pre-train Vision Transformers; a run is its YAML file.",
)
config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at configurations.")
app.add_typer(config_app, name="config")
app.add_typer(checkpoint_commands.app, name="checkpoint")
events_commands.register(app)
models_commands.register(app)
weights_commands.register(app)


ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A run's YAML file.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c ...]", help="Settings to replace, for example optim.lr=1e-3.")
]
AllowChangeOption = Annotated[
    list[str] | None, typer.Option("--allow-change", metavar="KEY", help="On a resume, accept another value of this setting. Repeatable.")
]
StopAtOption = Annotated[int | None, typer.Option("--stop-at", metavar="STEP", min=1, help="Save and stop after this step (exit code 75).")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and the plan; start nothing.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]
WorldSizeOption = Annotated[int, typer.Option("--world-size", min=1, help="Number of processes to plan for.")]


@app.command(
    epilog="Examples: vitscale train configs/pretrain/fashion_mnist_vit.yaml | torchrun --nproc-per-node 2 -m vitscale train CONFIG"
)
def train(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    allow_change: AllowChangeOption = None,
    stop_at: StopAtOption = None,
    dry_run: DryRunOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a run, or go on with it: the same command resumes.

    Runs in the processes it finds: one, or those of torchrun.
    """
    with present_errors(debug=debug):
        from vitscale import api

        run_config = api.load_config(config, overrides=overrides or [])
        if dry_run:
            from vitscale.dist.ranks import current_ranks

            if current_ranks().is_main:
                _print_plan(run_config, world_size=current_ranks().world_size)
            return
        from vitscale.train.goodput import seconds_since_process_start

        seconds_before = seconds_since_process_start()
        api.train(run_config, allow_change=allow_change or [], stop_at_step=stop_at, seconds_before=seconds_before)


@app.command(epilog="Example: vitscale evaluate CONFIG --checkpoint runs/fashion_mnist_vit/checkpoints/step-00000500")
def evaluate(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="PATH", help="A checkpoint or run directory; default: the run's newest.")
    ] = None,
    dry_run: DryRunOption = False,
    debug: DebugOption = False,
) -> None:
    """Evaluate a checkpoint and print the results as JSON.

    Runs every evaluation of the configuration, in the processes it finds: one, or those of torchrun.
    """
    with present_errors(debug=debug):
        import json

        from vitscale import api
        from vitscale.dist.ranks import current_ranks

        run_config = api.load_config(config, overrides=overrides or [])
        if dry_run and not current_ranks().is_main:
            return
        if dry_run:
            for name, evaluation in run_config.evals.items():
                source = checkpoint or run_config.run_dir
                print(f"{name}: {evaluation.kind} on {evaluation.path} with {evaluation.weights} weights of {source}")
            return
        results = api.evaluate(run_config, checkpoint=checkpoint)
        if current_ranks().is_main:
            print(json.dumps(results, indent=2))


@app.command(epilog="Example: vitscale audit runs/base runs/base_on_8_gpus")
def audit(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A run directory, for example runs/base.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The run directory to compare it with.")],
    samples_only: Annotated[bool, typer.Option("--samples-only", help="Compare no weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything found as JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """Prove that two runs saw the same samples in the same order and hold the same weights, or name the first difference.

    Needs the sample logs of both (data.log_samples=true). Exit code: 0 proved, 10 other samples or not proved, 20 other weights.
    """
    with present_errors(debug=debug):
        from vitscale import api
        from vitscale.train.audit_text import describe_audit

        report = api.audit(run_a, run_b, samples_only=samples_only)
        sys.stdout.write(report.to_json() + "\n" if as_json else describe_audit(report))
        raise SystemExit(report.exit_code)


@app.command(epilog="Example: vitscale plan configs/pretrain/fashion_mnist_vit.yaml --world-size 8")
def plan(config: ConfigArgument, overrides: OverridesArgument = None, world_size: WorldSizeOption = 1, debug: DebugOption = False) -> None:
    """Print what a run would do, and why, without starting it."""
    with present_errors(debug=debug):
        from vitscale import api

        _print_plan(api.load_config(config, overrides=overrides or []), world_size=world_size)


@config_app.command(epilog="Example: vitscale config show configs/pretrain/fashion_mnist_vit.yaml optim.lr=3e-4")
def show(config: ConfigArgument, overrides: OverridesArgument = None, debug: DebugOption = False) -> None:
    """Print a configuration with every default filled in."""
    with present_errors(debug=debug):
        from vitscale.api import load_config
        from vitscale.run_config import dump_run_config

        sys.stdout.write(dump_run_config(load_config(config, overrides=overrides or [])))


@config_app.command(epilog="Example: vitscale config schema > vitscale.schema.json")
def schema(debug: DebugOption = False) -> None:
    """Print the JSON Schema of a run's YAML file, for editors."""
    with present_errors(debug=debug):
        import json

        from vitscale.run_config import RunConfig

        print(json.dumps(RunConfig.model_json_schema(), indent=2))


def _print_plan(config: "RunConfig", *, world_size: int) -> None:
    from vitscale import api
    from vitscale.plan.describe import describe_run

    sys.stdout.write(describe_run(config, plan=api.plan(config, world_size=world_size)))


def main() -> None:
    """Entry point."""
    app()
