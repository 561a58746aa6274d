"""The public API, the same that the commands use: load_config, plan, train, evaluate, import_weights, export, their dry runs, audit."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitscale.config import UserError
from vitscale.config.progress import Watch, silent
from vitscale.engine.processes import shutdown
from vitscale.plan.cluster import Cluster, detect_cluster
from vitscale.plan.plan import Plan, make_plan
from vitscale.run_config import RunConfig, load_run_config
from vitscale.train.audit import AuditReport, audit_runs
from vitscale.train.build import open_run
from vitscale.train.equality import DEFAULT_TOLERANCE
from vitscale.train.evaluate import evaluate_checkpoint
from vitscale.train.export import DEFAULT_MAX_MEMORY_BYTES, Exported, ExportPlan, export_checkpoint, plan_export_checkpoint
from vitscale.train.goodput import TimeLedger
from vitscale.train.goodput_report import GoodputReport, read_goodput
from vitscale.train.import_weights import Imported, ImportPlan, import_weights, plan_import
from vitscale.train.loop import train_loop
from vitscale.train.run_lock import Launch
from vitscale.weights.targets import Format

__all__ = [
    "AuditReport",
    "Cluster",
    "ExportPlan",
    "Exported",
    "GoodputReport",
    "ImportPlan",
    "Imported",
    "Launch",
    "Plan",
    "RunConfig",
    "TrainResult",
    "audit",
    "evaluate",
    "events",
    "export",
    "import_weights",
    "load_config",
    "plan",
    "plan_export",
    "plan_import",
    "train",
]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a finished run ended. `values` holds the last logged figures and every evaluation, `eval/<name>/<value>`."""

    run_dir: Path
    step: int
    samples: int
    values: dict[str, float]


def load_config(path: str | Path, *, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file, apply `a.b=c` overrides, check everything. Raises `ConfigError` listing every problem."""
    return load_run_config(Path(path), overrides=overrides)


def plan(config: RunConfig, *, world_size: int = 1) -> Plan:
    """What the run would do with `world_size` processes on machines like this one. Raises `ConfigError`."""
    return make_plan(config, cluster=detect_cluster(device=config.parallel.device, world_size=world_size))


def train(
    config: RunConfig,
    *,
    allow_change: Collection[str] = (),
    stop_at_step: int | None = None,
    stop_when: Callable[[], bool] | None = None,
    launch: Launch | None = None,
    seconds_before: float = 0.0,
) -> TrainResult:
    """Train, or go on training, in the processes it finds: this one, torchrun's, or those of a group that exists already.

    Called on every rank with equal arguments. A run directory that holds checkpoints is resumed; `allow_change` names
    settings that may then differ. `stop_when` is asked after each step, on every rank, whether to save and stop, as signals
    do. `seconds_before` is the time that this process has spent on the run before the call, which events.jsonl then counts
    as start-up. `launch` names a command that starts several groups of processes one after the other. Raises `StopRequested` after a
    requested stop (everything saved), else the `UserError` of whatever is wrong.
    """
    ledger = TimeLedger(seconds_before=seconds_before)
    try:
        with open_run(
            config, ledger=ledger, allow_change=allow_change, stop_at_step=stop_at_step, stop_when=stop_when, launch=launch
        ) as run:
            try:
                state = train_loop(run)
            except UserError as error:
                step = run.start.step if run.reporter.last_step is None else run.reporter.last_step
                run.reporter.event("ended", step=step, message=str(error), exit_code=error.exit_code)
                raise
            except Exception:
                # In the log of this rank: what all ranks print at once is hard to read, and under a scheduler may be lost.
                logging.getLogger(__name__).exception("training ended with an error")
                step = run.start.step if run.reporter.last_step is None else run.reporter.last_step
                run.reporter.event("ended", step=step, message="ended by an error; its trace is in logs/rank-00000.jsonl", exit_code=1)
                raise
            already = " already, in an earlier start" if state == run.start else ""
            run.reporter.event("finished", step=state.step, message=f"{run.directory.root}: finished after step {state.step}{already}")
            return TrainResult(run_dir=run.directory.root, step=state.step, samples=state.samples, values=run.reporter.last_values)
    finally:
        shutdown()


def evaluate(config: RunConfig, *, checkpoint: str | Path | None = None) -> dict[str, dict[str, float]]:
    """Run every evaluation of the configuration on a checkpoint (default: the run's newest whole one), in the processes
    it finds. Returns values by evaluation name. Raises `CheckpointError`, `DataError` or `ConfigError`."""
    try:
        return evaluate_checkpoint(config, checkpoint=Path(checkpoint) if checkpoint is not None else None)
    finally:
        shutdown()


def export(
    run: str | Path,
    *,
    layout: Format,
    weights: Literal["model", "ema"] = "model",
    output: str | Path | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    max_memory_bytes: int = DEFAULT_MAX_MEMORY_BYTES,
    watch: Watch = silent,
) -> Exported:
    """Write the weights of a run (its newest whole checkpoint) or of one checkpoint as timm, Hugging Face, vit_jax or big_vision
    load them, or as a graph of ONNX, into the folder `output` (default: `export/<layout>` in the run directory), after comparing outputs.
    `watch` is told how far it is.

    Raises `CheckpointError`, also where outputs differ by more than `tolerance` of the largest, `ConfigError` or `UsageError`."""
    return export_checkpoint(
        Path(run),
        layout=layout,
        kind="ema" if weights == "ema" else "weight",
        output=Path(output) if output is not None else None,
        tolerance=tolerance,
        max_memory_bytes=max_memory_bytes,
        watch=watch,
    )


def plan_export(
    run: str | Path,
    *,
    layout: Format,
    weights: Literal["model", "ema"] = "model",
    output: str | Path | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    max_memory_bytes: int = DEFAULT_MAX_MEMORY_BYTES,
) -> ExportPlan:
    """What `export` would do, without writing anything. Raises as that does for what can be known before."""
    return plan_export_checkpoint(
        Path(run),
        layout=layout,
        kind="ema" if weights == "ema" else "weight",
        output=Path(output) if output is not None else None,
        tolerance=tolerance,
        max_memory_bytes=max_memory_bytes,
    )


def events(run: str | Path, *, include_stopped: bool = False) -> GoodputReport:
    """What the wall time of a run went into, over all its attempts, and what happened to it, from its events.jsonl.
    `include_stopped` counts the time between a requested stop and the next start too. Raises `UsageError`."""
    return read_goodput(Path(run), include_stopped=include_stopped)


def audit(run_a: str | Path, run_b: str | Path, *, samples_only: bool = False) -> AuditReport:
    """Compare two run directories: logged samples, every common checkpoint bit by bit (not with `samples_only`), losses,
    configuration, data set. The report's `exit_code` is 0 where it proves them equal. Raises `UsageError`, `DataError` or
    `CheckpointError` for what cannot be read."""
    return audit_runs(Path(run_a), Path(run_b), samples_only=samples_only)
