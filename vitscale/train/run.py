"""Run: everything a training run holds while it runs, and the few actions of the loop that touch more than one of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from vitscale.checkpoint.layout import step_folder
from vitscale.checkpoint.saver import CheckpointSaver, SaveOutcome
from vitscale.config import CheckpointError, CorruptionError, DataError, StopRequested, UserError
from vitscale.data.loader import TrainLoader
from vitscale.data.source import TrainingData
from vitscale.data.types import Batch
from vitscale.dist.agreement import jointly, on_main
from vitscale.engine.engine import Engine
from vitscale.plan.plan import Plan
from vitscale.run_config import RunConfig
from vitscale.train.copies import Copies
from vitscale.train.evaluation_run import run_evaluation
from vitscale.train.evaluations import Evaluation
from vitscale.train.faults import FaultHook
from vitscale.train.goodput import TimeLedger
from vitscale.train.guards import StopRequest, Verdict
from vitscale.train.losses import LossLedger
from vitscale.train.pending import StepSummary
from vitscale.train.pictures import captions, shown_images
from vitscale.train.rank_report import RankReport, share, total_io
from vitscale.train.reporter import Reporter
from vitscale.train.reports import DataReport, InputPictures
from vitscale.train.run_dir import RunDirectory
from vitscale.train.sample_log import SampleLog
from vitscale.train.skipped_steps import SkipGuard
from vitscale.train.state import TrainState, host_state, last_step
from vitscale.train.watch import Watch


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What came of asking for a batch: it, or why there is none; neither past the end of the run."""

    batch: Batch | None = None
    error: UserError | None = None

    def taken(self) -> Batch:
        """The batch."""
        assert self.batch is not None, self.error
        return self.batch

    def raise_on_all_ranks(self) -> None:
        """Raise the error that any rank has. All ranks must call this."""
        jointly(self._raise)

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is ready to train from `start`, on this rank's `batches` of `data`."""

    config: RunConfig
    config_text: str
    plan: Plan
    directory: RunDirectory
    start: TrainState
    engine: Engine
    saver: CheckpointSaver
    copies: Copies
    check_owner: Callable[[], None]
    data: TrainingData
    batches: TrainLoader
    evaluations: tuple[Evaluation, ...]
    reporter: Reporter
    sample_log: SampleLog
    losses: LossLedger
    skips: SkipGuard
    stop: StopRequest
    ledger: TimeLedger
    watch: Watch
    faults: FaultHook | None = None

    @property
    def num_steps(self) -> int:
        """The last step: the plan's, unless the run began with another global batch."""
        return last_step(self.start, num_samples=self.config.train.num_samples, global_batch=self.plan.global_batch)

    def due_evaluations(self, step: int) -> list[Evaluation]:
        """The evaluations to run after this step; all of them after the last one."""
        at_end = step == self.num_steps
        return [e for e in self.evaluations if at_end or (e.every_steps is not None and step % e.every_steps == 0)]

    def missed_evaluations(self) -> list[Evaluation]:
        """Those due at the step that a resume begins with and not in metrics.jsonl: the start before ended too early. All ranks."""
        if self.start.step == 0:
            return []
        done = on_main(lambda: sorted(self.directory.evaluations_of(self.start.step)))
        return [evaluation for evaluation in self.due_evaluations(self.start.step) if evaluation.name not in done]

    def evaluate(self, evaluation: Evaluation, state: TrainState) -> None:
        """Run one evaluation and report it. All ranks. A save that is under way is committed meanwhile.

        Raises on all ranks alike: what any of them raises, and `StopRequested` where somebody asks for a stop in the middle of it,
        with everything saved: the next start makes up for it.
        """
        parts_written = 0

        def vote(failed: bool) -> Verdict:
            nonlocal parts_written
            self.watch.beat("evaluate", state.step)
            self.tell_saves(self.saver.poll(parts_written=parts_written))
            outcome = self.stop.vote(None, failed=failed, parts_written=self.saver.parts_written)
            parts_written = outcome.parts_written
            return outcome.verdict

        self.watch.beat("evaluate", state.step)
        with self.ledger.spent("evaluation"), self.engine.weights(evaluation.weights):
            predict = partial(self.engine.predict, method=evaluation.evaluator.method)
            found = run_evaluation(evaluation, vote=vote, predict=predict)
        jointly(found.raise_error)
        if found.values is None:
            self._save_before_stop(state)
            raise StopRequested(self.stopped_message(state))
        self.reporter.evaluation(evaluation.name, state, found.values)

    def _save_before_stop(self, state: TrainState) -> None:
        """See that there is a checkpoint of this step. All ranks."""
        self.finish_saves(state)
        if state.step == self.start.step or on_main(lambda: self.reporter.last_saved == state.step):
            return
        if self.is_comparison_due(state.step, save=True):
            self.compare_replicas(state)
        self.save(state, last=True)

    def fetch(self, state: TrainState) -> "Fetched":
        """This rank's part of the global batch after `state`, if one is left; what had to be replaced in it is in the ledger
        before anything is made of it."""
        self.watch.beat("data", state.step)
        self.losses.batch_done()
        if state.step >= self.num_steps:
            return Fetched()
        with self.ledger.spent("data_wait"):
            try:
                batch = next(self.batches)
                self.losses.record(self.batches.take_lost())
            except UserError as error:
                return Fetched(error=error)
        return Fetched(batch=batch)

    def vote(self, state: TrainState, *, failed: bool) -> Verdict:
        """What all ranks do after this step; what all have written of a save is committed."""
        if self.faults is not None:
            self.faults.after_step(state.step)
        self.watch.beat("vote", state.step)
        outcome = self.stop.vote(state.step, failed=failed, parts_written=self.saver.parts_written)
        with self.ledger.spent("checkpoint"):
            self.tell_saves(self.saver.poll(parts_written=outcome.parts_written))
        self.watch.beat("report", state.step)
        return outcome.verdict

    def report(self, state: TrainState, summary: StepSummary, *, lr: float) -> None:
        """Report the steps since the last report. All ranks; raises `DataError` when too many samples are lost, `NonFiniteLossError`
        for steps that the run cannot go on from."""
        with self.ledger.spent("report"):
            self._report(state, summary, lr=lr)

    def _report(self, state: TrainState, summary: StepSummary, *, lr: float) -> None:
        own = self.watch.own_seconds(self.ledger.host_seconds, forward_seconds=self.engine.take_forward_seconds())
        ranks = share(RankReport(lost=self.losses.take_unshared(), io=self.batches.take_io(), own_seconds=own))
        self._tell_stragglers(state, ranks)
        self._count_losses(state, ranks)
        self._count_skipped_steps(state, summary)
        data = DataReport(lost_samples=self.losses.count, io=total_io(ranks))
        self.reporter.steps(state, summary, lr=lr, images_per_step=self.plan.global_batch, data=data)

    def _tell_stragglers(self, state: TrainState, ranks: Sequence[RankReport]) -> None:
        for finding in self.watch.judge([rank.own_seconds for rank in ranks]):
            self.reporter.event(finding.kind, step=state.step, message=finding.message, rank=finding.rank, ratio=finding.ratio)

    def _count_losses(self, state: TrainState, ranks: Sequence[RankReport]) -> None:
        """Report the samples that any rank has lost. Raises `DataError` past the budget."""
        self.reporter.lost_samples(state.step, self.losses.merge(entry for rank in ranks for entry in rank.lost))
        too_many = self.losses.exceeds(
            max_fraction=self.config.data.max_lost_fraction, samples=state.samples, epoch_samples=self.data.epoch_samples
        )
        if too_many is not None:
            self.finish_saves(state)
            on_main(self.losses.forget_unsaved)
            raise DataError(too_many)

    def _count_skipped_steps(self, state: TrainState, summary: StepSummary) -> None:
        """Report the steps that were skipped. Raises `NonFiniteLossError` where the run cannot go on."""
        found = self.skips.judge(summary)
        self.reporter.skipped(found.steps)
        if found.fatal is not None:
            self.finish_saves(state)
            self.reporter.fail(found.fatal)

    def begins_stage(self, state: TrainState) -> bool:
        """Whether the batch after `state` is the first of this attempt or of a stage: kernels for it are built and chosen."""
        stage = self.config.stage_at(state.samples)
        return state.step == self.start.step or stage != self.config.stage_at(state.samples - self.plan.global_batch)

    def show_inputs(self, batch: Batch, state: TrainState) -> None:
        """Show the first augmented inputs of a batch with their labels, if it is the first of the run, of a resume or of a stage."""
        self.watch.beat("step", state.step)
        if not self.begins_stage(state):
            return
        with self.ledger.spent("report"):
            self._show_inputs(batch, state)

    def _show_inputs(self, batch: Batch, state: TrainState) -> None:
        stage = self.config.stage_at(state.samples)
        if self.config.stages:
            size, num_stages = self.config.stage_image_sizes[stage], len(self.config.stage_starts)
            self.reporter.event("stage", step=state.step, message=f"stage {stage + 1} of {num_stages}: images of {size} pixels")
        count = self.config.train.log_images
        if count and self.reporter.is_main:
            shown = captions(batch, count=count, classes=self.data.classes)
            self.reporter.pictures(InputPictures(step=state.step, images=shown_images(batch, count=count), captions=shown))

    def save(self, state: TrainState, *, last: bool) -> None:
        """Begin to save a checkpoint. All ranks. A failure is told, and training goes on; but the `last` one of a start is waited
        for, and raises `CheckpointError` when it could not be saved."""
        self.watch.beat("end" if last else "save", state.step)
        with self.ledger.spent("checkpoint"):
            self._save(state, last=last)

    def _save(self, state: TrainState, *, last: bool) -> None:
        ended = self.saver.begin(
            step=state.step,
            state=host_state(
                state,
                config=self.config,
                data=self.data.identity(),
                lost=self.losses.save(state.step),
                skipped_in_a_row=self.skips.in_a_row,
            ),
            config_text=self.config_text,
        )
        ended += self.saver.finish() if last else []
        self.tell_saves(ended)
        failed = next((outcome.error for outcome in ended if outcome.step == state.step and outcome.error is not None), None)
        if last and failed is not None:
            raise CheckpointError(failed)
        if any(outcome.error is not None for outcome in ended):  # all ranks know these
            on_main(self.check_owner)

    def finish_saves(self, state: TrainState) -> None:
        """Wait for the save that is under way: what is saved already shall not be lost with the end that follows. All ranks."""
        self.watch.beat("end", state.step)
        self.tell_saves(self.saver.finish())

    def tell_saves(self, ended: Sequence[SaveOutcome]) -> None:
        """Report the saves that have ended."""
        for outcome in ended:
            self.reporter.saved(outcome)
            self.losses.save_ended(outcome.step, is_committed=outcome.error is None)
            if outcome.error is None:
                self.copies.start(step_folder(self.directory.checkpoints, step=outcome.step))
        self.copies.tell()

    def is_comparison_due(self, step: int, *, save: bool) -> bool:
        """Whether what the ranks hold alike is to be compared after this step, which may be one that is saved."""
        every = self.config.watch.compare_replicas_every_steps
        return every is not None and (save or step % every == 0)

    def compare_replicas(self, state: TrainState) -> None:
        """See that no rank's memory has changed by itself. All ranks; raises `CorruptionError` on all of them."""
        self.watch.beat("compare", state.step)
        with self.ledger.spent("report"):
            found = self.engine.compare_replicas()
        if not found.differences:
            return
        self.finish_saves(state)
        message = (
            f"step {state.step}: silent corruption: {found}. Nothing of this step or later is kept; the newest good checkpoint is"
            f" {self.reporter.newest_checkpoint()}, from which the same command goes on. Have the memory and the device of the named"
            " rank tested before it takes part again."
        )
        self.reporter.event("corruption", step=state.step, message=message, ranks=list(found.ranks))
        error = CorruptionError(message)
        error.ranks = found.ranks
        raise error

    def stopped_message(self, state: TrainState) -> str:
        """What the user reads after a stop."""
        return (
            f"{self.directory.root}: stopped on request after step {state.step} of {self.num_steps}, everything saved."
            " The same command goes on from there."
        )
