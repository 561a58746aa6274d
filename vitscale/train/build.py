"""From a configuration to a Run that is ready to train, in the order that the steps depend on each other."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset

from vitscale.checkpoint.discover import find_newest
from vitscale.checkpoint.reader import open_on_all_ranks
from vitscale.checkpoint.remote import RemoteCheckpoints
from vitscale.checkpoint.restore import restore_checkpoint
from vitscale.checkpoint.retention import RetentionPolicy, read_scores
from vitscale.checkpoint.saver import CheckpointSaver
from vitscale.config import CheckpointError, ConfigError, DataError
from vitscale.data.demand import Demand
from vitscale.data.lanes import rank_slice
from vitscale.data.loader import Share, TrainLoader, train_loader
from vitscale.data.processes import start_fork_server
from vitscale.data.source import TrainingData, open_training_data
from vitscale.data.types import InputSpec, LostSample, StagedTransform
from vitscale.data.worker import Part
from vitscale.dist.agreement import jointly, on_main
from vitscale.dist.collectives import gather_json
from vitscale.dist.ranks import Ranks
from vitscale.engine.deepspeed_config import EngineConfig
from vitscale.engine.engine import Engine, build_engine
from vitscale.engine.processes import init_process_group
from vitscale.plan.cluster import Cluster, detect_cluster
from vitscale.plan.plan import Plan, make_plan, resolve, with_lanes
from vitscale.run_config import RunConfig, dump_run_config
from vitscale.train.copies import Copies, open_remote
from vitscale.train.environment import environment_json, start_rank_log, stop_rank_log
from vitscale.train.evaluations import build_evaluations
from vitscale.train.faults import FaultHook
from vitscale.train.goodput import RunningShares, TimeLedger, append_slice
from vitscale.train.goodput_report import read_goodput
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
from vitscale.train.skipped_steps import SkipGuard
from vitscale.train.state import TrainState, last_step, read_host_state
from vitscale.train.stop_request import RequestFile
from vitscale.train.watch import Watch, open_watch


@contextlib.contextmanager
def open_run(
    config: RunConfig,
    *,
    ledger: TimeLedger | None = None,
    allow_change: Collection[str] = (),
    stop_at_step: int | None = None,
    stop_when: Callable[[], bool] | None = None,
    launch: Launch | None = None,
) -> Iterator[Run]:
    """Build the run and take it down again. All ranks enter this with equal arguments.

    In this order: 1. plan, 2. lock the run directory, 3. decide where to resume, 4. open the data to train and to evaluate
    on, 5. build the engine with initial or resumed weights, 6. write what the run starts with, start loader and observers.
    Up to 5 nothing that an earlier attempt left is touched. `ledger` counts the time since before the call, by default from
    now. Raises the `UserError` of whatever is wrong.
    """
    ledger = ledger or TimeLedger()
    with contextlib.ExitStack() as stack:
        site = _enter(config, launch=launch, stack=stack)
        ledger.watch_collectives(site.watch.collective_seconds)
        make_stop = partial(
            StopRequest, stop_at_step=stop_at_step, sources=[site.is_stop_asked, *([] if stop_when is None else [stop_when])]
        )
        run = _build(config, site=site, allow_change=allow_change, make_stop=make_stop, ledger=ledger, stack=stack)
        stack.callback(ledger.become, "stop")
        stack.callback(site.watch.beat, "end", run.num_steps)
        yield run


@dataclass(frozen=True, kw_only=True)
class _Site:
    """Where a run takes place: its processes, what they plan to do, its directory and who looks after it. Rank 0 holds the
    directory's lock and hears what is asked through it; the other ranks have neither. `launch` started the processes."""

    ranks: Ranks
    plan: Plan
    directory: RunDirectory
    lock: RunLock | None
    requests: RequestFile | None
    watch: Watch
    launch: Launch | None

    def check_owner(self) -> None:
        """Raise `CheckpointError` where another process has the run directory by now. Rank 0 only."""
        assert self.lock is not None, "rank 0 holds the run directory, and no other rank"
        self.lock.check()

    def is_stop_asked(self) -> bool:
        """Whether a file of the run directory asks for a stop."""
        return self.requests is not None and self.requests.is_asked()


def _enter(config: RunConfig, *, launch: Launch | None, stack: contextlib.ExitStack) -> _Site:
    cluster = detect_cluster(device=config.parallel.device, world_size=1)
    ranks = init_process_group(cluster.device)
    plan = make_plan(config, cluster=_agreed(detect_cluster(device=config.parallel.device, world_size=ranks.world_size)))
    directory = RunDirectory(root=config.run_dir)
    locks: list[RunLock] = []
    requests: list[RequestFile] = []

    def hold() -> None:
        locks.append(stack.enter_context(exclusive(directory, launch)))
        with writing(directory):
            launch_id = None if launch is None else launch.id
            requests.append(RequestFile(directory.root, launch=launch_id, is_shut_out=locks[0].is_lost))
        stack.callback(requests[0].close)

    on_main(hold)
    jointly(lambda: _start_log(directory, rank=ranks.rank, stack=stack))
    watch = stack.enter_context(open_watch(config.watch, directory=directory, ranks=ranks, device=plan.device))
    lock, request_file = (locks[0], requests[0]) if ranks.is_main else (None, None)
    return _Site(ranks=ranks, plan=plan, directory=directory, lock=lock, requests=request_file, watch=watch, launch=launch)


def _build(
    config: RunConfig,
    *,
    site: _Site,
    allow_change: Collection[str],
    make_stop: Callable[[], StopRequest],
    ledger: TimeLedger,
    stack: contextlib.ExitStack,
) -> Run:
    ranks, directory = site.ranks, site.directory
    if config.data.num_workers:
        start_fork_server()  # after the log, which its processes write to
    remote = jointly(lambda: open_remote(config, check_owner=site.check_owner) if ranks.is_main else None)
    decision = _decide(config, site=site, allow_change=allow_change, remote=remote)
    plan = with_lanes(site.plan, lanes=decision.lanes)
    config = resolve(config, plan=plan)
    data = _open_data(config)
    evaluations = build_evaluations(config, ranks=ranks, train_classes=data.classes, pin_memory=plan.device == "cuda")
    started = _start_engine(config, plan=plan, decision=decision, data=data, stack=stack, show_life=site.watch.beat_again)
    begin, engine = started.begin, started.engine
    start = begin.state
    replayed = _replayed_losses(directory, saved=begin.losses)
    on_main(lambda: _write_start(config, plan=plan, directory=directory, start=start, ledger=ledger))
    stack.callback(_write_end, directory, ledger=ledger, ranks=ranks)
    demand = _demand(config, plan=plan, ranks=ranks, start=start, replayed=replayed)
    loader = _loader(config, plan=plan, ranks=ranks, parts=data.parts(demand), batch_keys=started.batch_keys)
    stack.callback(loader.close)
    stop = make_stop()  # not earlier: a signal ends a start at once, for nothing is lost with it
    stack.callback(stop.close)
    sample_log = jointly(lambda: SampleLog(directory.sample_log(ranks.rank) if config.data.log_samples else None))
    stack.callback(sample_log.close)
    known_values = on_main(directory.newest_values)
    reporter = jointly(
        lambda: _reporter(config, plan=plan, site=site, start=start, data=data, engine=engine, ledger=ledger, known_values=known_values)
    )
    stack.callback(reporter.close)
    copies = stack.enter_context(_copies(remote, config=config, site=site, reporter=reporter))
    resumed_from = start.step if decision.checkpoint is not None else None
    saver = jointly(lambda: _saver(config, plan=plan, site=site, engine=engine, copies=copies, resumed_from=resumed_from))
    stack.callback(saver.close)
    _announce(reporter, plan=plan, decision=decision, start=start, transfer=started.transfer, notes=data.notes)
    if decision.checkpoint is not None:
        copies.start(Path(decision.checkpoint))
    return Run(
        config=config,
        plan=plan,
        directory=directory,
        start=start,
        engine=engine,
        saver=saver,
        copies=copies,
        check_owner=site.check_owner,
        batches=loader,
        classes=data.classes,
        data_identity=data.identity(),
        evaluations=evaluations,
        reporter=reporter,
        sample_log=sample_log,
        losses=LossLedger(directory.lost_log(ranks.rank), saved=begin.losses or {}, written=replayed),
        skips=SkipGuard(max_in_a_row=config.watch.max_skipped_steps, in_a_row=begin.skipped_in_a_row),
        epoch_samples=data.epoch_samples,
        stop=stop,
        ledger=ledger,
        watch=site.watch,
        faults=_fault_hook(site, engine=engine),
    )


def _fault_hook(site: _Site, *, engine: Engine) -> FaultHook | None:
    """None in every ordinary run."""
    if site.launch is None or not site.launch.rehearses_faults:
        return None
    return FaultHook(site.directory.root, rank=site.ranks.rank, engine=engine)


def _agreed(cluster: Cluster) -> Cluster:
    """With the memory of the rank that has least: ranks that planned another micro-batch would wait for each other for ever."""
    device, host = (min(values) for values in zip(*gather_json([cluster.memory_bytes, cluster.host_memory_bytes]), strict=True))
    return replace(cluster, memory_bytes=device, host_memory_bytes=host)


def _start_log(directory: RunDirectory, *, rank: int, stack: contextlib.ExitStack) -> None:
    with writing(directory):
        stack.callback(stop_rank_log, start_rank_log(directory.rank_log(rank)))


def _decide(config: RunConfig, *, site: _Site, allow_change: Collection[str], remote: RemoteCheckpoints | None) -> ResumeDecision:
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


@dataclass(frozen=True, kw_only=True)
class _Started:
    """An engine with its weights, and where it goes on. `transfer` tells what was made of the weights of another run."""

    engine: Engine
    batch_keys: frozenset[str]
    transfer: str | None
    begin: "_Begin"


@dataclass(frozen=True, kw_only=True)
class _Begin:
    """Where a run goes on. `losses` are the samples lost up to there, None where the run begins or goes on with other data;
    `skipped_in_a_row` counts the steps up to there that were skipped one after another."""

    state: TrainState
    losses: Losses | None
    skipped_in_a_row: int


def _start_engine(
    config: RunConfig,
    *,
    plan: Plan,
    decision: ResumeDecision,
    data: TrainingData,
    stack: contextlib.ExitStack,
    show_life: Callable[[], None],
) -> _Started:
    with torch.device("meta"):
        objective = config.objective.build(config.model.build())
    initial = initial_values(config, objective, resuming=decision.checkpoint is not None, show_life=show_life)
    engine = build_engine(objective, config=_engine_config(config, plan=plan), seed=config.seed, initial=initial.value)
    stack.callback(engine.close)
    begin = _restore(decision, engine=engine, data=data)
    return _Started(engine=engine, batch_keys=objective.batch_keys, transfer=initial.table, begin=begin)


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


def _restore(decision: ResumeDecision, *, engine: Engine, data: TrainingData) -> _Begin:
    """Fill the engine with what the checkpoint holds, if the run goes on from one."""
    if decision.checkpoint is None:
        return _Begin(state=TrainState(), losses=None, skipped_in_a_row=0)
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
    restore_checkpoint(reader, store=engine.store, missing_ema="copy_weights" if "optim.ema_decay" in decision.changed else "refuse")
    return _Begin(
        state=state,
        losses=first_of_each(LostSample(**entry) for entry in reader.state["lost"]) if is_same_data else None,
        skipped_in_a_row=int(reader.state.get("skipped_in_a_row", 0)),  # missing in older checkpoints
    )


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


def _write_start(config: RunConfig, *, plan: Plan, directory: RunDirectory, start: TrainState, ledger: TimeLedger) -> None:
    with writing(directory):
        directory.rewind_logs(step=start.step)
        append_slice(directory.events, ledger.take(step=start.step))
        replace_text(directory.config, dump_run_config(config))
        replace_text(directory.plan, plan.to_json())
        replace_text(directory.environment, environment_json())


def _write_end(directory: RunDirectory, *, ledger: TimeLedger, ranks: Ranks) -> None:
    """The time since the last report, whatever ended the run."""
    if ranks.is_main:
        with contextlib.suppress(OSError):  # a full disk was told when a line did not fit
            append_slice(directory.events, ledger.take())


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


def _loader(config: RunConfig, *, plan: Plan, ranks: Ranks, parts: IterableDataset[Part], batch_keys: frozenset[str]) -> TrainLoader:
    num_workers, prefetch = config.data.num_workers, config.data.prefetch_batches
    share = Share(rank=ranks.rank, world_size=ranks.world_size, num_workers=num_workers, prefetch=prefetch)
    return train_loader(parts, share=share, batch_keys=batch_keys, pin_memory=plan.device == "cuda")


def _scores(config: RunConfig, directory: RunDirectory) -> Mapping[int, float]:
    """What the best checkpoints are chosen by: step to figure."""
    best = config.checkpoint.keep_best
    return {} if best is None else read_scores(directory.metrics, metric=best.metric)


def _copies(remote: RemoteCheckpoints | None, *, config: RunConfig, site: _Site, reporter: Reporter) -> Copies:
    scores = partial(_scores, config, site.directory)
    return Copies(remote, config=config, scores=scores, event=reporter.event, show_life=site.watch.beat_again)


def _saver(config: RunConfig, *, plan: Plan, site: _Site, engine: Engine, copies: Copies, resumed_from: int | None) -> CheckpointSaver:
    scores = partial(_scores, config, site.directory)
    return CheckpointSaver(
        engine.store,
        folder=site.directory.checkpoints,
        in_background=plan.saves_in_background,
        check_owner=site.check_owner,
        retention=RetentionPolicy.from_config(config.checkpoint, scores=scores, pinned=lambda: copies.pending, resumed_from=resumed_from),
        show_life=site.watch.beat_again,
    )


def _reporter(
    config: RunConfig,
    *,
    plan: Plan,
    site: _Site,
    start: TrainState,
    data: TrainingData,
    engine: Engine,
    ledger: TimeLedger,
    known_values: Mapping[str, float],
) -> Reporter:
    directory, is_main = site.directory, site.ranks.is_main

    def batch_ids(step: int) -> Sequence[int]:
        consumed = start.samples + (step - 1 - start.step) * plan.global_batch
        return data.batch_ids(consumed, global_batch=plan.global_batch) or ()

    def newest_checkpoint() -> str:
        found = find_newest(directory.checkpoints, deep=False).checkpoint
        return str(found) if found is not None else "none yet (the run would start over)"

    observers: tuple[Observer, ...] = ()
    if is_main:
        num_steps = last_step(start, num_samples=config.train.num_samples, global_batch=plan.global_batch)
        texts = {"config_text": dump_run_config(config), "plan_text": plan.to_json()}
        console = ConsoleObserver(num_steps=num_steps, start_step=start.step)
        with writing(directory):
            lines = JsonLinesObserver(metrics=directory.metrics, events=directory.events, warn=console.show)
            board = TensorBoardObserver(directory.tensorboard, start_step=start.step, **texts, warn=console.show)
        observers = (console, lines, board)
    return Reporter(
        observers,
        is_main=is_main,
        batch_ids=batch_ids,
        newest_checkpoint=newest_checkpoint,
        memory_bytes=engine.peak_memory_bytes,
        known_values=known_values,
        ledger=ledger,
        shares=RunningShares(read_goodput(directory.root).seconds if is_main else {}),
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
