"""From a configuration to a Run that is ready to train, in the order that the steps depend on each other."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from vitscale.checkpoint.discover import find_newest
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.checkpoint.restore import restore_checkpoint
from vitscale.checkpoint.retention import RetentionPolicy, read_scores
from vitscale.checkpoint.saver import CheckpointSaver
from vitscale.config import CheckpointError, ConfigError, DataError
from vitscale.data.demand import Demand
from vitscale.data.lanes import rank_slice
from vitscale.data.loader import Share, train_loader
from vitscale.data.processes import start_fork_server
from vitscale.data.source import TrainingData, open_training_data
from vitscale.data.types import InputSpec, LostSample, StagedTransform
from vitscale.dist.agreement import jointly, on_main
from vitscale.dist.collectives import gather_json
from vitscale.dist.ranks import Ranks
from vitscale.engine.deepspeed_config import EngineConfig
from vitscale.engine.engine import Engine, build_engine
from vitscale.engine.processes import init_process_group
from vitscale.plan.cluster import Cluster, detect_cluster
from vitscale.plan.plan import Plan, make_plan, resolve, with_lanes
from vitscale.run_config import RunConfig, dump_run_config
from vitscale.train.environment import environment_json, start_rank_log, stop_rank_log
from vitscale.train.evaluations import build_evaluations
from vitscale.train.guards import StopRequest
from vitscale.train.initial import initial_values
from vitscale.train.losses import Losses, LossLedger, clear_ledger, first_of_each, read_ledger, replacements
from vitscale.train.observers import ConsoleObserver, JsonLinesObserver, TensorBoardObserver
from vitscale.train.reporter import Reporter
from vitscale.train.reports import Observer
from vitscale.train.resume import ResumeDecision, decide_resume
from vitscale.train.run import Run
from vitscale.train.run_dir import RunDirectory, replace_text, writing
from vitscale.train.run_lock import Launch, RunLock, exclusive
from vitscale.train.sample_log import SampleLog
from vitscale.train.state import TrainState, last_step, read_host_state
from vitscale.train.stop_request import RequestFile


@contextlib.contextmanager
def open_run(
    config: RunConfig,
    *,
    allow_change: Collection[str] = (),
    stop_at_step: int | None = None,
    stop_when: Callable[[], bool] | None = None,
    launch: Launch | None = None,
) -> Iterator[Run]:
    """Build the run and take it down again. All ranks enter this with equal arguments.

    In this order: 1. plan, 2. lock the run directory, 3. decide where to resume, 4. open the data to train and to evaluate
    on, 5. build the engine with initial or resumed weights, 6. write what the run starts with, start loader and observers.
    Up to 5 nothing that an earlier attempt left is touched. Raises the `UserError` of whatever is wrong.
    """
    cluster = detect_cluster(device=config.parallel.device, world_size=1)
    ranks = init_process_group(cluster.device)
    plan = make_plan(config, cluster=_agreed(detect_cluster(device=config.parallel.device, world_size=ranks.world_size)))
    directory = RunDirectory(root=config.run_dir)
    with contextlib.ExitStack() as stack:
        held = _Held()
        on_main(lambda: held.take(directory, launch=launch, stack=stack))
        jointly(lambda: _start_log(directory, rank=ranks.rank, stack=stack))
        if config.data.num_workers:
            start_fork_server()  # after the log, which its processes write to
        decision = _decide(config, plan=plan, directory=directory, allow_change=allow_change)
        plan = with_lanes(plan, lanes=decision.lanes)
        config = resolve(config, plan=plan)
        data = _open_data(config)
        evaluations = build_evaluations(config, ranks=ranks, train_classes=data.classes, pin_memory=plan.device == "cuda")
        with torch.device("meta"):
            objective = config.objective.build(config.model.build())
        initial = initial_values(config, objective, resuming=decision.checkpoint is not None)
        engine = build_engine(objective, config=_engine_config(config, plan=plan), seed=config.seed, initial=initial.value)
        stack.callback(engine.close)
        start, saved = _restore(decision, engine=engine, data=data)
        replayed = _replayed_losses(directory, saved=saved)
        on_main(lambda: _write_start(config, plan=plan, directory=directory, start=start))
        demand = _demand(config, plan=plan, ranks=ranks, start=start, replayed=replayed)
        loader = train_loader(
            data.parts(demand),
            share=_share(config, ranks=ranks),
            batch_keys=objective.batch_keys,
            pin_memory=plan.device == "cuda",
        )
        stack.callback(loader.close)
        stop = StopRequest(stop_at_step=stop_at_step, sources=[held.is_stop_asked, *([stop_when] if stop_when else [])])
        stack.callback(stop.close)
        saver = _saver(config, plan=plan, directory=directory, engine=engine, start=start, check_owner=held.check)
        stack.callback(saver.close)
        sample_log = jointly(lambda: SampleLog(directory.sample_log(ranks.rank) if config.data.log_samples else None))
        stack.callback(sample_log.close)
        reporter = _reporter(config, plan=plan, directory=directory, ranks=ranks, start=start, data=data, engine=engine)
        stack.callback(reporter.close)
        _announce(reporter, plan=plan, decision=decision, start=start, transfer=initial.table, notes=data.notes)
        yield Run(
            config=config,
            plan=plan,
            directory=directory,
            start=start,
            engine=engine,
            saver=saver,
            batches=loader,
            classes=data.classes,
            data_identity=data.identity(),
            evaluations=evaluations,
            reporter=reporter,
            sample_log=sample_log,
            losses=LossLedger(directory.lost_log(ranks.rank), saved=saved or {}, written=replayed),
            epoch_samples=data.epoch_samples,
            stop=stop,
        )


def _agreed(cluster: Cluster) -> Cluster:
    """With the memory of the rank that has least: ranks that planned another micro-batch would wait for each other for ever."""
    device, host = (min(values) for values in zip(*gather_json([cluster.memory_bytes, cluster.host_memory_bytes]), strict=True))
    return replace(cluster, memory_bytes=device, host_memory_bytes=host)


class _Held:
    """The run directory in the hand of rank 0: its lock, and what is asked through it. Other ranks hold nothing."""

    def __init__(self) -> None:
        self._lock: RunLock | None = None
        self._requests: RequestFile | None = None

    def take(self, directory: RunDirectory, *, launch: Launch | None, stack: contextlib.ExitStack) -> None:
        """Hold it until the stack is unwound. Raises what `exclusive` raises."""
        self._lock = stack.enter_context(exclusive(directory, launch))
        with writing(directory):
            self._requests = RequestFile(directory.root, launch=None if launch is None else launch.id)
        stack.callback(self._requests.close)

    def check(self) -> None:
        """Raise `CheckpointError` where another process has it by now. Rank 0 only."""
        assert self._lock is not None, "rank 0 holds the run directory, and no other rank"
        self._lock.check()

    def is_stop_asked(self) -> bool:
        """Whether a file in it asks for a stop."""
        return self._requests is not None and self._requests.is_asked()


def _start_log(directory: RunDirectory, *, rank: int, stack: contextlib.ExitStack) -> None:
    with writing(directory):
        stack.callback(stop_rank_log, start_rank_log(directory.rank_log(rank)))


def _decide(config: RunConfig, *, plan: Plan, directory: RunDirectory, allow_change: Collection[str]) -> ResumeDecision:
    shared = on_main(lambda: asdict(decide_resume(config, plan=plan, checkpoints=directory.checkpoints, allow_change=allow_change)))
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


def _restore(decision: ResumeDecision, *, engine: Engine, data: TrainingData) -> tuple[TrainState, Losses | None]:
    """Where to go on, and the losses up to there; None where the run begins, or goes on with other data."""
    if decision.checkpoint is None:
        return TrainState(), None
    path = Path(decision.checkpoint)
    reader = jointly(lambda: CheckpointReader(path))
    # Another data set or order changes what the cursor points at, which is what somebody who allows it asks for.
    is_same_data = all(key != "seed" and not key.startswith("data.") for key in decision.changed)
    state = jointly(lambda: read_host_state(reader.state, data=data.identity() if is_same_data else {}, where=str(path)))
    if state.samples % data.cursor_unit:
        raise CheckpointError(
            f"{path}: data.lanes {data.cursor_unit} does not divide the {state.samples} samples trained on so far; go on"
            " with the lanes of this run, which its config.yaml names"
        )
    # A moving average that the run did not keep so far starts from its weights now.
    restore_checkpoint(reader, store=engine.store, missing_ema="copy_weights" if "optim.ema_decay" in decision.changed else "refuse")
    return state, first_of_each(LostSample(**entry) for entry in reader.state["lost"]) if is_same_data else None


def _replayed_losses(directory: RunDirectory, *, saved: Losses | None) -> Losses:
    """What earlier attempts lost in the steps after the checkpoint, which are done again. All ranks call this.

    A ledger of other data, or of a run that is started over, says nothing about this one and is removed.
    """
    if saved is None:
        with writing(directory):
            on_main(lambda: clear_ledger(directory.lost_samples))
        return {}
    found = first_of_each(LostSample(**entry) for entry in on_main(lambda: read_ledger(directory.lost_samples)))
    return {name: lost for name, lost in found.items() if name not in saved}


def _write_start(config: RunConfig, *, plan: Plan, directory: RunDirectory, start: TrainState) -> None:
    with writing(directory):
        directory.rewind_logs(step=start.step)
        replace_text(directory.config, dump_run_config(config))
        replace_text(directory.plan, plan.to_json())
        replace_text(directory.environment, environment_json())


def _demand(config: RunConfig, *, plan: Plan, ranks: Ranks, start: TrainState, replayed: Losses) -> Demand:
    inputs = partial(InputSpec, num_channels=config.model.num_channels, jpeg_decoder=config.data.jpeg_decoder)
    transforms = tuple(config.objective.sample_transform(inputs(image_size=size)) for size in config.stage_image_sizes)
    return Demand(
        transform=StagedTransform(starts=config.stage_starts, transforms=transforms),
        seed=config.seed,
        global_batch=plan.global_batch,
        start_samples=start.samples,
        rank_slice=rank_slice(plan.global_batch, rank=ranks.rank, world_size=ranks.world_size),
        replaced_before=replacements(replayed),
    )


def _share(config: RunConfig, *, ranks: Ranks) -> Share:
    data = config.data
    return Share(rank=ranks.rank, world_size=ranks.world_size, num_workers=data.num_workers, prefetch=data.prefetch_batches)


def _saver(
    config: RunConfig, *, plan: Plan, directory: RunDirectory, engine: Engine, start: TrainState, check_owner: Callable[[], None]
) -> CheckpointSaver:
    best = config.checkpoint.keep_best

    def scores() -> Mapping[int, float]:
        return {} if best is None else read_scores(directory.metrics, metric=best.metric)

    retention = RetentionPolicy.from_config(config.checkpoint, scores=scores, resumed_from=start.step if start.step else None)
    return CheckpointSaver(
        engine.store,
        folder=directory.checkpoints,
        in_background=plan.saves_in_background,
        check_owner=check_owner,
        retention=retention,
    )


def _reporter(
    config: RunConfig, *, plan: Plan, directory: RunDirectory, ranks: Ranks, start: TrainState, data: TrainingData, engine: Engine
) -> Reporter:
    def batch_ids(step: int) -> Sequence[int]:
        consumed = start.samples + (step - 1 - start.step) * plan.global_batch
        return data.batch_ids(consumed, global_batch=plan.global_batch) or ()

    def newest_checkpoint() -> str:
        found = find_newest(directory.checkpoints, deep=False).checkpoint
        return str(found) if found is not None else "none yet (the run would start over)"

    observers: tuple[Observer, ...] = ()
    if ranks.is_main:
        num_steps = last_step(start, num_samples=config.train.num_samples, global_batch=plan.global_batch)
        observers = (
            ConsoleObserver(num_steps=num_steps, start_step=start.step),
            JsonLinesObserver(metrics=directory.metrics, events=directory.events),
            TensorBoardObserver(
                directory.tensorboard, start_step=start.step, config_text=dump_run_config(config), plan_text=plan.to_json()
            ),
        )
    return Reporter(
        observers,
        is_main=ranks.is_main,
        batch_ids=batch_ids,
        newest_checkpoint=newest_checkpoint,
        memory_bytes=engine.peak_memory_bytes,
        max_skipped_steps=config.watch.max_skipped_steps,
        known_values=directory.newest_values(),
    )


def _announce(
    reporter: Reporter, *, plan: Plan, decision: ResumeDecision, start: TrainState, transfer: str | None, notes: Sequence[str]
) -> None:
    reporter.event(
        "resume" if decision.checkpoint else "start",
        step=start.step,
        message=(
            f"{plan.num_parameters / 1e6:.2f} M parameters, {plan.step_flops_per_image / 1e9:,.4g} GFLOPs per image and step;"
            f" {plan.world_size} x {plan.device}, {plan.precision}, ZeRO {plan.zero_stage}, global batch {plan.global_batch}"
            f" = {plan.world_size} ranks x {plan.micro_batch} x {plan.accumulation} accumulated"
        ),
        world_size=plan.world_size,
        zero_stage=plan.zero_stage,
    )
    for message in (*plan.reasons, *decision.messages):
        reporter.event("decision", step=start.step, message=message)
    for message in notes:
        reporter.event("data", step=start.step, message=message)
    if transfer is not None:
        reporter.event("init_from", step=start.step, message=transfer)
