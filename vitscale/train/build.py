"""From a configuration to a Run that is ready to train, in the order that the steps depend on each other."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from vitscale.checkpoint.discover import find_newest
from vitscale.checkpoint.remote import RemoteCheckpoints
from vitscale.checkpoint.retention import RetentionPolicy, Scores, read_scores
from vitscale.checkpoint.saver import CheckpointSaver
from vitscale.data.demand import Demand
from vitscale.data.lanes import rank_slice
from vitscale.data.loader import Share, TrainLoader, train_loader
from vitscale.data.processes import start_fork_server
from vitscale.data.types import InputSpec, LostSample, StagedTransform
from vitscale.dist.agreement import jointly, on_main
from vitscale.dist.ranks import Ranks
from vitscale.engine.engine import Engine
from vitscale.run_config import RunConfig
from vitscale.train.copies import Copies, open_remote
from vitscale.train.environment import environment_json
from vitscale.train.faults import FaultHook
from vitscale.train.goodput import RunningShares, TimeLedger, append_slice
from vitscale.train.goodput_report import read_goodput
from vitscale.train.guards import StopRequest
from vitscale.train.losses import Losses, LossLedger, clear_ledger, first_of_each, read_ledger, replacements
from vitscale.train.observers import ConsoleObserver, JsonLinesObserver, TensorBoardObserver
from vitscale.train.reporter import Reporter
from vitscale.train.reports import Observer
from vitscale.train.run import Run
from vitscale.train.run_dir import RunDirectory, replace_text, writing
from vitscale.train.run_lock import Launch
from vitscale.train.sample_log import SampleLog
from vitscale.train.site import Site, enter_site
from vitscale.train.skipped_steps import SkipGuard
from vitscale.train.start import Started, start_run
from vitscale.train.state import last_step


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
        site = enter_site(config, launch=launch, stack=stack)
        ledger.watch_collectives(site.watch.collective_seconds)
        make_stop = partial(
            StopRequest, stop_at_step=stop_at_step, sources=[site.is_stop_asked, *([] if stop_when is None else [stop_when])]
        )
        if config.data.num_workers:
            start_fork_server()  # after the log, which its processes write to
        remote = jointly(lambda: open_remote(config, check_owner=site.check_owner) if site.ranks.is_main else None)
        started = start_run(config, site=site, allow_change=allow_change, remote=remote, stack=stack)
        run = _build(started, site=site, remote=remote, ledger=ledger, make_stop=make_stop, stack=stack)
        stack.callback(ledger.become, "stop")
        stack.callback(site.watch.beat, "end", run.num_steps)
        yield run


def _build(
    started: Started,
    *,
    site: Site,
    remote: RemoteCheckpoints | None,
    ledger: TimeLedger,
    make_stop: Callable[[], StopRequest],
    stack: contextlib.ExitStack,
) -> Run:
    config, plan, begin, data = started.config, started.plan, started.begin, started.data
    ranks, directory = site.ranks, site.directory
    replayed = _replayed_losses(directory, saved=begin.losses)
    on_main(lambda: _write_start(started, directory=directory, ledger=ledger))
    stack.callback(_write_end, directory, ledger=ledger, ranks=ranks)
    loader = _loader(started, ranks=ranks, replayed=replayed)
    stack.callback(loader.close)
    stop = make_stop()  # not earlier: a signal ends a start at once, for nothing is lost with it
    stack.callback(stop.close)
    sample_log = jointly(lambda: SampleLog(directory.sample_log(ranks.rank) if config.data.log_samples else None))
    stack.callback(sample_log.close)
    known_values = on_main(directory.newest_values)
    reporter = jointly(lambda: _reporter(started, site=site, ledger=ledger, known_values=known_values))
    stack.callback(reporter.close)
    scores = jointly(lambda: _scores(config, site=site, reporter=reporter))
    copies = Copies(remote, config=config, scores=scores, event=reporter.event, show_life=site.watch.beat_again)
    stack.enter_context(copies)
    saver = jointly(lambda: _saver(started, site=site, copies=copies, scores=scores))
    stack.callback(saver.close)
    _announce(reporter, started)
    if started.decision.checkpoint is not None:
        copies.start(Path(started.decision.checkpoint))
    return Run(
        config=config,
        config_text=started.config_text,
        plan=plan,
        directory=directory,
        start=begin.state,
        engine=started.engine,
        saver=saver,
        copies=copies,
        check_owner=site.check_owner,
        data=data,
        batches=loader,
        evaluations=started.evaluations,
        reporter=reporter,
        sample_log=sample_log,
        losses=LossLedger(directory.lost_log(ranks.rank), saved=begin.losses or {}, written=replayed),
        skips=SkipGuard(max_in_a_row=config.watch.max_skipped_steps, in_a_row=begin.skipped_in_a_row),
        stop=stop,
        ledger=ledger,
        watch=site.watch,
        faults=_fault_hook(site, engine=started.engine),
    )


def _fault_hook(site: Site, *, engine: Engine) -> FaultHook | None:
    """None in every ordinary run."""
    if site.launch is None or not site.launch.rehearses_faults:
        return None
    return FaultHook(site.directory.root, rank=site.ranks.rank, engine=engine)


def _replayed_losses(directory: RunDirectory, *, saved: Losses | None) -> Losses:
    """What earlier attempts lost in the steps after the checkpoint, which are done again. All ranks call this.

    A ledger of other data, or of a run that is started over, says nothing about this one and is removed.
    """
    if saved is None:
        on_main(lambda: _clear_losses(directory))
        return {}
    found = first_of_each(LostSample(**entry) for entry in on_main(lambda: read_ledger(directory.lost_samples)))
    return {name: lost for name, lost in found.items() if name not in saved}


def _clear_losses(directory: RunDirectory) -> None:
    with writing(directory):
        clear_ledger(directory.lost_samples)


def _write_start(started: Started, *, directory: RunDirectory, ledger: TimeLedger) -> None:
    step = started.begin.state.step
    with writing(directory):
        directory.rewind_logs(step=step)
        append_slice(directory.events, ledger.take(step=step))
        replace_text(directory.config, started.config_text)
        replace_text(directory.plan, started.plan.to_json())
        replace_text(directory.environment, environment_json())


def _write_end(directory: RunDirectory, *, ledger: TimeLedger, ranks: Ranks) -> None:
    """The time since the last report, whatever ended the run."""
    if ranks.is_main:
        with contextlib.suppress(OSError):  # a full disk was told when a line did not fit
            append_slice(directory.events, ledger.take())


def _loader(started: Started, *, ranks: Ranks, replayed: Losses) -> TrainLoader:
    config, plan = started.config, started.plan
    share = Share(rank=ranks.rank, world_size=ranks.world_size, num_workers=config.data.num_workers, prefetch=config.data.prefetch_batches)
    parts = started.data.parts(_demand(started, ranks=ranks, replayed=replayed))
    return train_loader(parts, share=share, batch_keys=started.batch_keys, pin_memory=plan.device == "cuda")


def _demand(started: Started, *, ranks: Ranks, replayed: Losses) -> Demand:
    config, global_batch = started.config, started.plan.global_batch
    model, forms = config.model, config.model.input_forms
    inputs = partial(InputSpec, num_channels=model.num_channels, jpeg_decoder=config.data.jpeg_decoder)
    transforms = tuple(
        config.objective.sample_transform(inputs(image_size=size, draws=form.marks | model.draw_sources, sequence=form.sequence))
        for size in config.stage_image_sizes
        for form in forms
    )
    return Demand(
        transform=StagedTransform(starts=config.stage_starts, transforms=transforms, num_forms=len(forms), seed=config.seed),
        seed=config.seed,
        global_batch=global_batch,
        start_samples=started.begin.state.samples,
        rank_slice=rank_slice(global_batch, rank=ranks.rank, world_size=ranks.world_size),
        replaced_before=replacements(replayed),
    )


def _scores(config: RunConfig, *, site: Site, reporter: Reporter) -> Scores:
    """What the best checkpoints are chosen by, step to figure: those of earlier attempts, which are read once, and this one's, which
    a full disk may keep out of metrics.jsonl."""
    best = config.checkpoint.keep_best
    if best is None or not site.ranks.is_main:
        return dict
    known = read_scores(site.directory.metrics, metric=best.metric)
    return lambda: known | reporter.scores(best.metric)


def _saver(started: Started, *, site: Site, copies: Copies, scores: Scores) -> CheckpointSaver:
    resumed_from = started.begin.state.step if started.decision.checkpoint is not None else None
    return CheckpointSaver(
        started.engine.store,
        folder=site.directory.checkpoints,
        in_background=started.plan.saves_in_background,
        check_owner=site.check_owner,
        retention=RetentionPolicy.from_config(
            started.config.checkpoint, scores=scores, pinned=lambda: copies.pending, resumed_from=resumed_from
        ),
        show_life=site.watch.beat_again,
    )


def _reporter(started: Started, *, site: Site, ledger: TimeLedger, known_values: Mapping[str, float]) -> Reporter:
    plan, start = started.plan, started.begin.state
    directory, is_main = site.directory, site.ranks.is_main

    def batch_ids(step: int) -> Sequence[int]:
        consumed = start.samples + (step - 1 - start.step) * plan.global_batch
        return started.data.batch_ids(consumed, global_batch=plan.global_batch) or ()

    def newest_checkpoint() -> str:
        found = find_newest(directory.checkpoints, deep=False).checkpoint
        return str(found) if found is not None else "none yet (the run would start over)"

    return Reporter(
        _observers(started, directory=directory) if is_main else (),
        is_main=is_main,
        batch_ids=batch_ids,
        newest_checkpoint=newest_checkpoint,
        memory_bytes=started.engine.peak_memory_bytes,
        known_values=known_values,
        ledger=ledger,
        shares=RunningShares(read_goodput(directory.root).seconds if is_main else {}),
    )


def _observers(started: Started, *, directory: RunDirectory) -> tuple[Observer, ...]:
    config, plan, start = started.config, started.plan, started.begin.state
    num_steps = last_step(start, num_samples=config.train.num_samples, global_batch=plan.global_batch)
    texts = {"config_text": started.config_text, "plan_text": plan.to_json()}
    console = ConsoleObserver(num_steps=num_steps, start_step=start.step)
    with writing(directory):
        lines = JsonLinesObserver(metrics=directory.metrics, events=directory.events, warn=console.show)
        board = TensorBoardObserver(directory.tensorboard, start_step=start.step, **texts, warn=console.show)
    return (console, lines, board)


def _announce(reporter: Reporter, started: Started) -> None:
    plan, decision, step = started.plan, started.decision, started.begin.state.step
    reporter.event(
        "resume" if decision.checkpoint else "start",
        step=step,
        message=(
            f"{plan.num_parameters / 1e6:.2f} M parameters, {plan.step_flops_per_image / 1e9:,.4g} GFLOPs per image and step;"
            f" {plan.world_size} x {plan.device}, {plan.precision}, ZeRO {plan.zero_stage}, global batch {plan.global_batch}"
            f" = {plan.world_size} ranks x {plan.micro_batch} x {plan.accumulation} accumulated"
        ),
        world_size=plan.world_size,
        zero_stage=plan.zero_stage,
    )
    for message in (*plan.reasons, *decision.messages):
        reporter.event("decision", step=step, message=message)
    for message in started.data.notes:
        reporter.event("data", step=step, message=message)
    if started.transfer is not None:
        reporter.event("init_from", step=step, message=started.transfer)
