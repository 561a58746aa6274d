"""Reporter: what the loop knows reaches every observer as values, and a bad loss ends the run with what is known about it."""

import math
from typing import Any

import pytest
import torch

from vitscale.checkpoint.saver import SaveOutcome
from vitscale.config import NonFiniteLossError
from vitscale.data.types import LostSample
from vitscale.train.goodput import RunningShares, TimeLedger
from vitscale.train.guards import NonFinite
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
        known_values={"loss": 9.0, "eval/test/top1": 0.5},
        ledger=ledger or TimeLedger(),
        shares=RunningShares({}),
    )


def lost(shard: str, sample_id: int, *, replaced_by: int | None, num_lost: int = 1) -> LostSample:
    return LostSample(
        epoch=3, view=3, sample_id=sample_id, shard=shard, reason=f"{shard} is torn.", replaced_by=replaced_by, num_lost=num_lost
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


def test_scores_are_what_this_attempt_has_found() -> None:
    told = reporter()
    for step, value in ((4, 0.5), (8, 0.75), (8, 0.8)):
        told.evaluation("test", TrainState(step=step, samples=8 * step), {"top1": value, "loss": 1.0})
    assert told.scores("eval/test/top1") == {4: 0.5, 8: 0.8}
    assert told.scores("eval/other/top1") == {}


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


def test_skipped_steps_are_told_with_their_samples() -> None:
    seen = Recorder()
    reporter(seen).skipped([12, 14])
    assert [(event.kind, event.step, event.details["sample_ids"]) for event in seen.seen] == [
        ("skipped_step", 12, [120, 121]),
        ("skipped_step", 14, [140, 141]),
    ]


def test_with_no_step_taken_there_are_no_figures_to_report() -> None:
    seen = Recorder()
    reporter(seen).steps(STATE, summary(5.0, norms=(math.inf,)), lr=0.25, images_per_step=8, data=DATA)
    assert seen.seen == []


def test_lost_samples_are_one_event_for_each_shard() -> None:
    seen = Recorder()
    replaced = [lost("b.tar", sample_id, replaced_by=sample_id + 1) for sample_id in range(20)]
    reporter(seen).lost_samples(12, [lost("c.tar", 77, replaced_by=None, num_lost=5), *replaced])
    of_b, of_c = seen.seen
    assert (of_b.kind, of_b.step, of_b.details["shard"], of_b.details["count"]) == ("lost_samples", 12, "b.tar", 20)
    assert of_b.message == "20 samples of b.tar were lost; sample 0 was replaced by 1: b.tar is torn."
    assert of_b.details["samples"] == [[3, sample_id, sample_id + 1] for sample_id in range(16)]
    assert (of_c.details["count"], of_c.message) == (5, "5 samples of c.tar were lost: c.tar is torn.")


def test_a_bad_loss_is_reported_with_its_batch_and_raised() -> None:
    seen = Recorder()
    told = reporter(seen)
    with pytest.raises(NonFiniteLossError) as caught:
        told.fail(NonFinite(step=12, what="the loss is nan"))
    (event,) = seen.seen
    assert (event.kind, event.step, event.details["sample_ids"]) == ("non_finite", 12, [120, 121])
    assert event.message == str(caught.value)
    for part in ("step 12", "nan", "120, 121", "checkpoints/step-00000010"):
        assert part in event.message


def test_ranks_without_observers_raise_the_same() -> None:
    with pytest.raises(NonFiniteLossError, match="step 11: the loss is inf"):
        reporter().fail(NonFinite(step=11, what="the loss is inf"))
