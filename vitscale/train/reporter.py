"""Reporter: turns what the loop knows into values for the observers; on ranks other than 0 it has none to tell."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

from vitscale.config import NonFiniteLossError
from vitscale.train.guards import NonFinite, first_non_finite, non_finite_message
from vitscale.train.pending import StepSummary
from vitscale.train.reports import DataReport, EvaluationReport, Event, InputPictures, Observer, StepReport, Timing
from vitscale.train.state import TrainState


class Reporter:
    """Reports to `observers`, which are empty on all ranks but 0.

    `batch_ids(step)` gives the sample ids of a whole global batch, `newest_checkpoint()` the name of the last good one,
    `memory_bytes()` the peak use of the device. `known_values` are the newest figures of an earlier attempt, for a run that is
    finished already.
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
    ) -> None:
        self._observers = observers
        self.is_main = is_main
        self._batch_ids = batch_ids
        self._newest_checkpoint = newest_checkpoint
        self._memory_bytes = memory_bytes
        self.last_values = dict(known_values)
        self.last_step: int | None = None

    def progress(self, step: int) -> None:
        """A step was done."""
        self.last_step = step
        for observer in self._observers:
            observer.on_progress(step)

    def steps(self, state: TrainState, summary: StepSummary, *, lr: float, timing: Timing, data: DataReport) -> None:
        """Report the steps since the last report. Raises `NonFiniteLossError` on every rank when one of them went wrong."""
        found = first_non_finite(summary.losses, summary.grad_norms, first_step=summary.first_step)
        if found is not None:
            self._fail(found)
        values = summary.values | {"lr": lr}
        gib = self._memory_bytes() / 2**30
        report = StepReport(step=state.step, samples=state.samples, values=values, timing=timing, data=data, memory_gib=gib)
        self.last_values |= report.figures
        for observer in self._observers:
            observer.on_step(report)

    def evaluation(self, name: str, state: TrainState, values: dict[str, float]) -> None:
        """Report an evaluation."""
        self.last_values |= {f"eval/{name}/{key}": value for key, value in values.items()}
        report = EvaluationReport(name=name, step=state.step, samples=state.samples, values=values)
        for observer in self._observers:
            observer.on_evaluation(report)

    @contextlib.contextmanager
    def saving(self, state: TrainState) -> Iterator[None]:
        """Report the save that the body does."""
        begin = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin
        self.event("checkpoint", step=state.step, message=f"saved checkpoint of step {state.step} in {seconds:.2f} s", seconds=seconds)

    def event(self, kind: str, *, step: int, message: str, **details: object) -> None:
        """Write an event to the ledger."""
        for observer in self._observers:
            observer.on_event(Event(kind=kind, step=step, message=message, details=details))

    def pictures(self, pictures: InputPictures) -> None:
        """Show augmented inputs."""
        for observer in self._observers:
            observer.on_pictures(pictures)

    def _fail(self, found: NonFinite) -> NoReturn:
        sample_ids = list(self._batch_ids(found.step))
        message = non_finite_message(found, sample_ids=sample_ids, newest_checkpoint=self._newest_checkpoint())
        self.event("non_finite", step=found.step, message=message, sample_ids=sample_ids)
        raise NonFiniteLossError(message)

    def close(self) -> None:
        """Close the observers."""
        for observer in self._observers:
            observer.close()
