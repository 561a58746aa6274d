"""The start of a run up to an engine that holds the weights to go on from; nothing that an earlier attempt left is touched."""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from vitscale.checkpoint.reader import open_on_all_ranks
from vitscale.checkpoint.remote import RemoteCheckpoints
from vitscale.checkpoint.restore import restore_checkpoint
from vitscale.config import CheckpointError, ConfigError, DataError
from vitscale.data.source import TrainingData, open_training_data
from vitscale.data.types import LostSample
from vitscale.dist.agreement import jointly, on_main
from vitscale.dist.collectives import gather_json
from vitscale.engine.deepspeed_config import EngineConfig
from vitscale.engine.engine import Engine, build_engine
from vitscale.plan.plan import Plan, resolve, with_lanes
from vitscale.run_config import RunConfig, dump_run_config
from vitscale.train.evaluations import Evaluation, build_evaluations
from vitscale.train.initial import initial_values
from vitscale.train.losses import Losses, first_of_each
from vitscale.train.resume import ResumeDecision, decide_resume
from vitscale.train.site import Site
from vitscale.train.state import TrainState, read_host_state


@dataclass(frozen=True, kw_only=True)
class Begin:
    """Where a run goes on. `losses` are the samples lost up to there, None where the run begins or goes on with other data;
    `skipped_in_a_row` counts the steps up to there that were skipped one after another."""

    state: TrainState
    losses: Losses | None
    skipped_in_a_row: int


@dataclass(frozen=True, kw_only=True)
class Started:
    """A run that is ready to train, but for what it writes. `config` is resolved; `transfer` tells what was made of the weights of
    another run."""

    config: RunConfig
    plan: Plan
    decision: ResumeDecision
    data: TrainingData
    evaluations: tuple[Evaluation, ...]
    engine: Engine
    batch_keys: frozenset[str]
    transfer: str | None
    begin: Begin

    @cached_property
    def config_text(self) -> str:
        """The configuration as it is written into the run's directory and with every checkpoint."""
        return dump_run_config(self.config)


def start_run(
    config: RunConfig, *, site: Site, allow_change: Collection[str], remote: RemoteCheckpoints | None, stack: contextlib.ExitStack
) -> Started:
    """Decide where to go on, open the data, build the engine and fill it. All ranks call this; `remote` is rank 0's.

    The engine is closed when `stack` unwinds. Raises the `UserError` of whatever is wrong.
    """
    decision = _decide(config, site=site, allow_change=allow_change, remote=remote)
    plan = with_lanes(site.plan, lanes=decision.lanes)
    config = resolve(config, plan=plan)
    data = _open_data(config)
    evaluations = build_evaluations(config, ranks=site.ranks, train_classes=data.classes, pin_memory=plan.device == "cuda")
    with torch.device("meta"):
        objective = config.objective.build(config.model.build())
    initial = initial_values(config, objective, resuming=decision.checkpoint is not None, show_life=site.watch.beat_again)
    engine = build_engine(objective, config=_engine_config(config, plan=plan), seed=config.seed, initial=initial.value)
    stack.callback(engine.close)
    return Started(
        config=config,
        plan=plan,
        decision=decision,
        data=data,
        evaluations=evaluations,
        engine=engine,
        batch_keys=objective.batch_keys,
        transfer=initial.table,
        begin=_restore(decision, engine=engine, data=data, show_life=site.watch.beat_again),
    )


def _decide(config: RunConfig, *, site: Site, allow_change: Collection[str], remote: RemoteCheckpoints | None) -> ResumeDecision:
    def decide() -> dict[str, Any]:
        return asdict(
            decide_resume(
                config,
                plan=site.plan,
                checkpoints=site.directory.checkpoints,
                allow_change=allow_change,
                remote=remote,
                show_life=site.watch.beat_again,
            )
        )

    shared = on_main(decide)
    return ResumeDecision(**shared | {"messages": tuple(shared["messages"]), "changed": tuple(shared["changed"])})


def _open_data(config: RunConfig) -> TrainingData:
    # Each rank reads the shards itself, and a node may see another, or no, copy of them.
    data = jointly(lambda: open_training_data(config.data, seed=config.seed))
    if any(identity != data.identity() for identity in gather_json(data.identity())):
        raise DataError(f"data: different nodes see different data sets under {config.data.shown}; copy one of them to all")
    num_classes = None if data.classes is None else len(data.classes)
    if num_classes is not None and num_classes > config.objective.num_classes:
        raise ConfigError(
            f"objective.num_classes: {config.objective.num_classes}, but the data set {config.data.shown} has {num_classes} classes;"
            f" set objective.num_classes={num_classes} or give another data set"
        )
    return data


def _engine_config(config: RunConfig, *, plan: Plan) -> EngineConfig:
    optim = config.optim
    return EngineConfig(
        zero_stage=plan.zero_stage,
        precision=plan.precision,
        device=plan.device,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        clip_grad_norm=optim.clip_grad_norm,
        ema_decay=optim.ema_decay,
        recompute=plan.recompute,
        recompute_every=plan.recompute_every,
        beta1=optim.beta1,
        beta2=optim.beta2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        offload_optimizer=config.parallel.offload_optimizer,
    )


def _restore(decision: ResumeDecision, *, engine: Engine, data: TrainingData, show_life: Callable[[], None]) -> Begin:
    """Fill the engine with what the checkpoint holds, if the run goes on from one."""
    if decision.checkpoint is None:
        return Begin(state=TrainState(), losses=None, skipped_in_a_row=0)
    path = Path(decision.checkpoint)
    reader = open_on_all_ranks(path)
    # Another data set or order changes what the cursor points at, which is what somebody who allows it asks for.
    is_same_data = all(key != "seed" and not key.startswith("data.") for key in decision.changed)
    state = jointly(lambda: read_host_state(reader.state, data=data.identity() if is_same_data else {}, where=str(path)))
    if state.samples % data.cursor_unit:
        raise CheckpointError(
            f"{path}: data.lanes {data.cursor_unit} does not divide the {state.samples} samples trained on so far; go on"
            " with the lanes of this run, which its config.yaml names"
        )
    # A moving average that the run did not keep so far starts from its weights now.
    missing_ema: Literal["copy_weights", "refuse"] = "copy_weights" if "optim.ema_decay" in decision.changed else "refuse"
    restore_checkpoint(reader, store=engine.store, missing_ema=missing_ema, show_life=show_life)
    return Begin(
        state=state,
        losses=first_of_each(LostSample(**entry) for entry in reader.state["lost"]) if is_same_data else None,
        skipped_in_a_row=int(reader.state.get("skipped_in_a_row", 0)),  # missing in older checkpoints
    )
