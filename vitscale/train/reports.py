"""The values that the loop hands to observers: frozen, plain numbers, nothing to write back to."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor

from vitscale.train.goodput import TimeSlice


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Speed of the steps since the last report. `data_wait_share` is the fraction of wall time spent waiting for data."""

    images_per_second: float
    data_wait_share: float
    step_seconds_p50: float
    step_seconds_p99: float


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What reading was like on all ranks: samples lost since the run began, and the storages' counters since the last report."""

    lost_samples: int
    io: dict[str, int]

    @property
    def figures(self) -> dict[str, float]:
        """The counters as metrics.jsonl has them."""
        return {"lost_samples": self.lost_samples, **{f"io_{name}": count for name, count in sorted(self.io.items())}}


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What is known at a logged step. `values` are means over the ranks and over the steps since the last
    report, but for `loss_max`, the greatest loss of these steps, and `lr`, the rate of this one. `spent` is where the time
    since the last report went, `shares` what each cause took of the run so far, over all attempts."""

    step: int
    samples: int
    values: dict[str, float]
    timing: Timing
    data: DataReport
    memory_gib: float
    spent: TimeSlice
    shares: dict[str, float]

    @property
    def figures(self) -> dict[str, float]:
        """Everything that was measured, as metrics.jsonl has it."""
        return {**self.values, **asdict(self.timing), **self.data.figures, "memory_gib": self.memory_gib}


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The result of one evaluation."""

    name: str
    step: int
    samples: int
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to the run, for the ledger: start, resume, save, restart, stop, failure."""

    kind: str
    step: int
    message: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class InputPictures:
    """Augmented inputs as the loader hands them over, before mixing and normalisation: `images` uint8 (B, C, H, W), a caption for each."""

    step: int
    images: Tensor
    captions: Sequence[str]


class Observer(Protocol):
    """Receives values on rank 0 and returns nothing."""

    def on_progress(self, step: int) -> None:
        """A step was done; called at every step, so it must be cheap and must not wait for the device."""

    def on_step(self, report: StepReport) -> None:
        """A logged step."""

    def on_evaluation(self, report: EvaluationReport) -> None:
        """An evaluation ended."""

    def on_event(self, event: Event) -> None:
        """An event for the ledger."""

    def on_pictures(self, pictures: InputPictures) -> None:
        """Augmented inputs of the first batch after a start."""

    def close(self) -> None:
        """No more values will come."""
