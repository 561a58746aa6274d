"""Reporter: what the loop knows reaches every observer as values, and a bad loss ends the run with what is known about it."""

import math
from typing import Any

import pytest
import torch

from vitscale.config import NonFiniteLossError
from vitscale.train.pending import StepSummary
from vitscale.train.reporter import Reporter
from vitscale.train.reports import DataReport, EvaluationReport, Event, InputPictures, StepReport, Timing
from vitscale.train.state import TrainState

DATA = DataReport(lost_samples=0, io={})
TIMING = Timing(images_per_second=100.0, data_wait_share=0.0, step_seconds_p50=0.1, step_seconds_p99=0.1)
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


def reporter(*observers: Recorder) -> Reporter:
    return Reporter(
        observers,
        is_main=bool(observers),
        batch_ids=lambda step: [step * 10, step * 10 + 1],
        newest_checkpoint=lambda: "checkpoints/step-00000010",
        memory_bytes=lambda: 2**29,
        known_values={"loss": 9.0, "eval/test/top1": 0.5},
    )


def summary(*losses: float) -> StepSummary:
    return StepSummary(first_step=11, losses=losses, grad_norms=(1.0,) * len(losses), values={"loss": sum(losses) / len(losses)})


def test_every_observer_gets_every_value() -> None:
    first, second = Recorder(), Recorder()
    told = reporter(first, second)
    told.progress(12)
    told.steps(STATE, summary(1.0, 2.0), lr=0.25, timing=TIMING, data=DATA)
    told.evaluation("test", STATE, {"top1": 0.75})
    told.pictures(InputPictures(step=0, images=torch.zeros(1), captions=[""]))
    told.close()
    progress, steps, evaluation, _, closed = first.seen
    assert first.seen == second.seen
    assert (progress, closed) == (12, "closed")
    assert steps == StepReport(step=12, samples=96, values={"loss": 1.5, "lr": 0.25}, timing=TIMING, data=DATA, memory_gib=0.5)
    assert evaluation == EvaluationReport(name="test", step=12, samples=96, values={"top1": 0.75})


def test_newest_values_replace_those_of_an_earlier_attempt() -> None:
    told = reporter()
    assert told.last_values == {"loss": 9.0, "eval/test/top1": 0.5}
    assert told.last_step is None
    told.progress(12)
    told.steps(STATE, summary(1.0), lr=0.25, timing=TIMING, data=DATA)
    told.evaluation("other", STATE, {"top1": 0.75})
    assert told.last_values.items() >= {"loss": 1.0, "lr": 0.25, "eval/test/top1": 0.5, "eval/other/top1": 0.75}.items()
    assert (told.last_values["images_per_second"], told.last_values["memory_gib"]) == (100.0, 0.5)
    assert told.last_step == 12


def test_a_save_is_reported_when_it_is_done_and_only_then() -> None:
    seen = Recorder()
    with reporter(seen).saving(STATE):
        assert seen.seen == []
    (event,) = seen.seen
    assert (event.kind, event.step) == ("checkpoint", 12)
    assert event.details["seconds"] >= 0
    with pytest.raises(OSError, match="disk"), reporter(seen).saving(STATE):
        raise OSError("disk")
    assert len(seen.seen) == 1


def test_a_bad_loss_is_reported_with_its_batch_and_raised_before_anything_else() -> None:
    seen = Recorder()
    with pytest.raises(NonFiniteLossError) as caught:
        reporter(seen).steps(STATE, summary(1.0, math.nan), lr=0.25, timing=TIMING, data=DATA)
    (event,) = seen.seen
    assert (event.kind, event.step, event.details["sample_ids"]) == ("non_finite", 12, [120, 121])
    assert event.message == str(caught.value)
    for part in ("step 12", "nan", "120, 121", "checkpoints/step-00000010"):
        assert part in event.message


def test_ranks_without_observers_raise_the_same() -> None:
    with pytest.raises(NonFiniteLossError, match="step 11: the loss is inf"):
        reporter().steps(STATE, summary(math.inf), lr=0.25, timing=TIMING, data=DATA)
