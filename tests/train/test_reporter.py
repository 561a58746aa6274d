"""Reporter: what the loop knows reaches every observer as values, and a bad loss ends the run with what is known about it."""

import math
from typing import Any

import pytest
import torch

from vitscale.checkpoint.saver import SaveOutcome
from vitscale.config import NonFiniteLossError
from vitscale.train.goodput import RunningShares, TimeLedger
from vitscale.train.pending import StepSummary
from vitscale.train.reporter import Reporter
from vitscale.train.reports import DataReport, EvaluationReport, Event, InputPictures, StepReport
from vitscale.train.state import TrainState

DATA = DataReport(lost_samples=0, io={})
STATE = TrainState(step=12, samples=96)


class Recorder:
    """Remembers everything it is told."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_progress(self, step: int) -> None:
        self.seen.append(step)

    def on_step(self, report: StepReport) -> None:
        self.seen.append(report)

    def on_evaluation(self, report: EvaluationReport) -> None:
        self.seen.append(report)

    def on_event(self, event: Event) -> None:
        self.seen.append(event)

    def on_pictures(self, pictures: InputPictures) -> None:
        self.seen.append(pictures)

    def close(self) -> None:
        self.seen.append("closed")


def reporter(*observers: Recorder, ledger: TimeLedger | None = None) -> Reporter:
    return Reporter(
        observers,
        is_main=bool(observers),
        batch_ids=lambda step: [step * 10, step * 10 + 1],
        newest_checkpoint=lambda: "checkpoints/step-00000010",
        memory_bytes=lambda: 2**29,
        max_skipped_steps=2,
        known_values={"loss": 9.0, "eval/test/top1": 0.5},
        ledger=ledger or TimeLedger(),
        shares=RunningShares({}),
    )


def summary(*losses: float, norms: tuple[float, ...] | None = None) -> StepSummary:
    norms = norms or (1.0,) * len(losses)
    taken = [loss for loss, norm in zip(losses, norms, strict=True) if math.isfinite(norm)]
    return StepSummary(first_step=11, losses=losses, grad_norms=norms, values={"loss": sum(taken) / len(taken)} if taken else {})


def test_every_observer_gets_every_value() -> None:
    first, second = Recorder(), Recorder()
    now = iter([0.0, 0.25, 0.5])
    ledger = TimeLedger(clock=lambda: next(now))
    ledger.step_done()
    told = reporter(first, second, ledger=ledger)
    told.progress(12)
    told.steps(STATE, summary(1.0, 2.0), lr=0.25, images_per_step=8, data=DATA)
    told.evaluation("test", STATE, {"top1": 0.75})
    told.pictures(InputPictures(step=0, images=torch.zeros(1), captions=[""]))
    told.close()
    progress, steps, evaluation, _, closed = first.seen
    assert first.seen == second.seen
    assert (progress, closed) == (12, "closed")
    assert isinstance(steps, StepReport)
    assert (steps.step, steps.samples, steps.values, steps.data, steps.memory_gib) == (12, 96, {"loss": 1.5, "lr": 0.25}, DATA, 0.5)
    assert (steps.spent.step, sum(steps.spent.seconds.values())) == (12, 0.5)
    assert steps.shares["start_up"] == 1.0
    assert evaluation == EvaluationReport(name="test", step=12, samples=96, values={"top1": 0.75})


def test_newest_values_replace_those_of_an_earlier_attempt() -> None:
    told = reporter()
    assert told.last_values == {"loss": 9.0, "eval/test/top1": 0.5}
    assert told.last_step is None
    told.progress(12)
    told.steps(STATE, summary(1.0), lr=0.25, images_per_step=8, data=DATA)
    told.evaluation("other", STATE, {"top1": 0.75})
    assert told.last_values.items() >= {"loss": 1.0, "lr": 0.25, "eval/test/top1": 0.5, "eval/other/top1": 0.75}.items()
    assert told.last_values["memory_gib"] == 0.5
    assert told.last_step == 12


def test_a_save_is_reported_with_its_times_and_what_it_replaced() -> None:
    seen = Recorder()
    told = reporter(seen)
    told.saved(SaveOutcome(step=12, error=None, stall_seconds=0.25, seconds=4.0, num_bytes=100, deleted=("step-00000008",)))
    told.saved(SaveOutcome(step=16, error=None, stall_seconds=0.25, seconds=0.25, num_bytes=100, deletion_error="step-00000012 stays"))
    in_background, at_once, not_deleted = seen.seen
    assert (in_background.kind, in_background.step) == ("checkpoint", 12)
    assert in_background.message == "saved checkpoint of step 12 in 4.00 s; training stood still for 0.25 s of it"
    assert in_background.details == {"seconds": 4.0, "stall_seconds": 0.25, "bytes": 100, "deleted": ["step-00000008"]}
    assert at_once.message == "saved checkpoint of step 16 in 0.25 s"
    assert (not_deleted.kind, not_deleted.message) == ("prune_failed", "step-00000012 stays")


def test_saves_that_fail_are_told_and_counted() -> None:
    seen = Recorder()
    told = reporter(seen)
    for step in (12, 16):
        told.saved(SaveOutcome(step=step, error="no space left", stall_seconds=0.1, seconds=0.1, num_bytes=0))
    assert [(event.kind, event.step, event.details["failed_saves"]) for event in seen.seen] == [
        ("save_failed", 12, 1),
        ("save_failed", 16, 2),
    ]


def test_steps_without_a_finite_gradient_are_told_and_left_out() -> None:
    seen = Recorder()
    told = reporter(seen)
    assert told.skipped(summary(1.0, 5.0, norms=(1.0, math.inf))) is None
    (skipped,) = seen.seen
    assert (skipped.kind, skipped.step, skipped.details["sample_ids"]) == ("skipped_step", 12, [120, 121])
    none_taken = summary(5.0, norms=(math.inf,))
    assert told.skipped(none_taken) is None
    told.steps(STATE, none_taken, lr=0.25, images_per_step=8, data=DATA)
    assert [event.kind for event in seen.seen[1:]] == ["skipped_step"], "with no step taken there are no figures to report"
    fatal = told.skipped(none_taken)
    assert fatal is not None
    assert fatal.what.startswith("the gradient is not finite, in the last of 3 steps in a row")


def test_a_bad_loss_is_reported_with_its_batch_and_raised() -> None:
    seen = Recorder()
    told = reporter(seen)
    found = told.skipped(summary(1.0, math.nan))
    assert found is not None
    with pytest.raises(NonFiniteLossError) as caught:
        told.fail(found)
    (event,) = seen.seen
    assert (event.kind, event.step, event.details["sample_ids"]) == ("non_finite", 12, [120, 121])
    assert event.message == str(caught.value)
    for part in ("step 12", "nan", "120, 121", "checkpoints/step-00000010"):
        assert part in event.message


def test_ranks_without_observers_raise_the_same() -> None:
    told = reporter()
    found = told.skipped(summary(math.inf))
    assert found is not None
    with pytest.raises(NonFiniteLossError, match="step 11: the loss is inf"):
        told.fail(found)
