"""Reporter: turns what the loop knows into values for the observers; on ranks other than 0 it has none to tell."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from vitscale.checkpoint.saver import SaveOutcome
from vitscale.config import NonFiniteLossError
from vitscale.data.types import LostSample
from vitscale.train.clock import timing_of
from vitscale.train.goodput import RunningShares, TimeLedger
from vitscale.train.guards import NonFinite, non_finite_message
from vitscale.train.pending import StepSummary
from vitscale.train.reports import DataReport, EvaluationReport, Event, InputPictures, Observer, StepReport
from vitscale.train.skipped_steps import skipped_message
from vitscale.train.state import TrainState

_SHOWN_LOSSES = 16


class Reporter:
    """Reports to `observers`, which are empty on all ranks but 0.

    `batch_ids(step)` gives the sample ids of a whole global batch, `newest_checkpoint()` the name of the last good one,
    `memory_bytes()` the peak use of the device. `known_values` are the newest figures of an earlier attempt, for a run that is
    finished already. `ledger` counts the time, `shares` adds it to that of earlier attempts.
    """

    def __init__(
        self,
        observers: Sequence[Observer],
        *,
        is_main: bool,
        batch_ids: Callable[[int], Sequence[int]],
        newest_checkpoint: Callable[[], str],
        memory_bytes: Callable[[], int],
        known_values: Mapping[str, float],
        ledger: TimeLedger,
        shares: RunningShares,
    ) -> None:
        self._observers = observers
        self.is_main = is_main
        self._batch_ids = batch_ids
        self.newest_checkpoint = newest_checkpoint
        self._memory_bytes = memory_bytes
        self._failed_saves = 0
        self.last_saved: int | None = None
        """The newest step that this attempt has committed; on rank 0."""
        self._ledger = ledger
        self._shares = shares
        self.last_values = dict(known_values)
        self.last_step: int | None = None
        self._evaluated: dict[str, dict[int, float]] = {}

    def progress(self, step: int) -> None:
        """A step was done."""
        self.last_step = step
        for observer in self._observers:
            observer.on_progress(step)

    def steps(self, state: TrainState, summary: StepSummary, *, lr: float, images_per_step: int, data: DataReport) -> None:
        """Report the steps since the last report."""
        if not summary.values:
            return  # all were skipped
        values = summary.values | {"lr": lr}
        gib = self._memory_bytes() / 2**30
        spent = self._ledger.take(step=state.step)
        report = StepReport(
            step=state.step,
            samples=state.samples,
            values=values,
            timing=timing_of(spent, images_per_step=images_per_step),
            data=data,
            memory_gib=gib,
            spent=spent,
            shares=self._shares.add(spent),
        )
        self.last_values |= report.figures
        for observer in self._observers:
            observer.on_step(report)

    def evaluation(self, name: str, state: TrainState, values: dict[str, float]) -> None:
        """Report an evaluation."""
        figures = {f"eval/{name}/{key}": value for key, value in values.items()}
        self.last_values |= figures
        for metric, value in figures.items():
            self._evaluated.setdefault(metric, {})[state.step] = value
        report = EvaluationReport(name=name, step=state.step, samples=state.samples, values=values)
        for observer in self._observers:
            observer.on_evaluation(report)

    def scores(self, metric: str) -> dict[int, float]:
        """What the evaluations of this attempt found of `metric`, `eval/<name>/<value>`, by step."""
        return dict(self._evaluated.get(metric, {}))

    def saved(self, outcome: SaveOutcome) -> None:
        """Report what became of a save."""
        if outcome.error is not None:
            self._failed_saves += 1
            self.event("save_failed", step=outcome.step, message=outcome.error, failed_saves=self._failed_saves)
            return
        self.last_saved = outcome.step
        stall = f"; training stood still for {outcome.stall_seconds:.2f} s of it" if outcome.stall_seconds < 0.9 * outcome.seconds else ""
        self.event(
            "checkpoint",
            step=outcome.step,
            message=f"saved checkpoint of step {outcome.step} in {outcome.seconds:.2f} s{stall}",
            seconds=outcome.seconds,
            stall_seconds=outcome.stall_seconds,
            bytes=outcome.num_bytes,
            deleted=list(outcome.deleted),
        )
        if outcome.deletion_error is not None:
            self.event("prune_failed", step=outcome.step, message=outcome.deletion_error)

    def event(self, kind: str, *, step: int, message: str, **details: object) -> None:
        """Write an event to the ledger."""
        for observer in self._observers:
            observer.on_event(Event(kind=kind, step=step, message=message, details=details))

    def pictures(self, pictures: InputPictures) -> None:
        """Show augmented inputs."""
        for observer in self._observers:
            observer.on_pictures(pictures)

    def lost_samples(self, step: int, lost: Sequence[LostSample]) -> None:
        """Report samples that were lost: one event for each shard, since a missing one may have thousands, all of which the ledger
        of lost samples lists."""
        for shard, group in itertools.groupby(sorted(lost, key=lambda sample: sample.shard), key=lambda sample: sample.shard):
            of_shard = list(group)
            first, count = of_shard[0], sum(sample.num_lost for sample in of_shard)
            instead = "" if first.replaced_by is None else f"; sample {first.sample_id} was replaced by {first.replaced_by}"
            self.event(
                "lost_samples",
                step=step,
                message=f"{count} samples of {shard} were lost{instead}: {first.reason}",
                shard=shard,
                count=count,
                samples=[[sample.epoch, sample.sample_id, sample.replaced_by] for sample in of_shard[:_SHOWN_LOSSES]],
            )

    def skipped(self, steps: Sequence[int]) -> None:
        """Report steps that were skipped."""
        for step in steps:
            sample_ids = list(self._batch_ids(step))
            self.event("skipped_step", step=step, message=skipped_message(step, sample_ids=sample_ids), sample_ids=sample_ids)

    def fail(self, found: NonFinite) -> NoReturn:
        """Report the step that ends the run, and raise `NonFiniteLossError`."""
        sample_ids = list(self._batch_ids(found.step))
        message = non_finite_message(found, sample_ids=sample_ids, newest_checkpoint=self.newest_checkpoint())
        self.event("non_finite", step=found.step, message=message, sample_ids=sample_ids)
        raise NonFiniteLossError(message)

    def close(self) -> None:
        """Close the observers."""
        for observer in self._observers:
            observer.close()
