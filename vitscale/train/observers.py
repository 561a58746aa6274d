"""The observers of a run: console, metrics.jsonl, events.jsonl and TensorBoard. They receive values and return nothing."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TextIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from vitscale.config import ConfigError
from vitscale.train.pictures import picture_grid
from vitscale.train.reports import EvaluationReport, Event, InputPictures, StepReport

_SHOWN_AS_ERRORS = ("ended", "non_finite")
"""Events whose message is also that of the error which ends the run, and which the command shows."""

_CURVES = {
    "checkpoint": ("seconds", "stall_seconds"),
    "save_failed": ("failed_saves",),
    "upload": ("upload_seconds",),
    "upload_failed": ("failed_uploads",),
}
"""Kinds of events with details that TensorBoard draws."""


class _Silent:
    """An observer that ignores everything; each one below overrides what it shows."""

    def on_progress(self, step: int) -> None:
        """Ignore."""

    def on_step(self, report: StepReport) -> None:
        """Ignore."""

    def on_evaluation(self, report: EvaluationReport) -> None:
        """Ignore."""

    def on_event(self, event: Event) -> None:
        """Ignore."""

    def on_pictures(self, pictures: InputPictures) -> None:
        """Ignore."""

    def close(self) -> None:
        """Ignore."""


class ConsoleObserver(_Silent):
    """A progress bar and a line per report on a terminal; plain lines where the output goes to a file or another program."""

    def __init__(self, *, num_steps: int, start_step: int) -> None:
        self._num_steps = num_steps
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        if self._console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console)
            self._task = self._progress.add_task("training", total=num_steps, completed=start_step)
            self._progress.start()

    def on_progress(self, step: int) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def on_step(self, report: StepReport) -> None:
        """One line of the figures people watch."""
        values, timing = report.values, report.timing
        width = len(str(self._num_steps))
        self._line(
            f"step {report.step:>{width}}/{self._num_steps}  loss {values['loss']:.4f}  lr {values['lr']:.2e}"
            f"  grad norm {values['grad_norm']:.3f}  {timing.images_per_second:,.0f} images/s"
            f"  data wait {timing.data_wait_share:.1%}  {report.memory_gib:.2f} GiB"
        )

    def on_evaluation(self, report: EvaluationReport) -> None:
        """One line per evaluation."""
        shown = "  ".join(f"{key} {value:.4f}" if value != int(value) else f"{key} {int(value)}" for key, value in report.values.items())
        self._line(f"step {report.step}  eval/{report.name}  {shown}")

    def on_event(self, event: Event) -> None:
        """The event's message, unless the command says the same as the run ends."""
        if event.kind not in _SHOWN_AS_ERRORS:
            self._line(event.message)

    def close(self) -> None:
        """Take the bar down."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _line(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False)
        else:
            print(text, flush=True)


class JsonLinesObserver(_Silent):
    """Appends every report to metrics.jsonl and every event to events.jsonl, each line flushed as it is written."""

    def __init__(self, *, metrics: Path, events: Path) -> None:
        self._metrics = _open_lines(metrics)
        self._events = _open_lines(events)

    def on_step(self, report: StepReport) -> None:
        """All figures of a logged step, and to the events where the time went."""
        _write_line(self._metrics, {"step": report.step, "samples": report.samples, **report.figures})
        _write_line(self._events, {"time": time.time(), **report.spent.record()})

    def on_evaluation(self, report: EvaluationReport) -> None:
        """An evaluation's values under `eval/<name>/`."""
        values = {f"eval/{report.name}/{key}": value for key, value in report.values.items()}
        _write_line(self._metrics, {"step": report.step, "samples": report.samples, **values})

    def on_event(self, event: Event) -> None:
        """An event with its time; durable at once, since it may be the last thing that the run can say."""
        record = {"time": time.time(), "event": event.kind, "step": event.step, "message": event.message, **event.details}
        _write_line(self._events, record, durably=True)

    def close(self) -> None:
        """Make both files durable."""
        for file in (self._metrics, self._events):
            with contextlib.suppress(OSError):  # a full disk was told when a line did not fit
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(OSError):
                file.close()


class TensorBoardObserver(_Silent):
    """Curves, the grid of augmented inputs and the configuration, for `tensorboard --logdir`.

    `start_step` hides what an earlier, interrupted attempt wrote of the steps that are done again.
    """

    def __init__(self, folder: Path, *, start_step: int, config_text: str, plan_text: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)
        self._writer.add_text("config", _code_block(config_text, "yaml"), start_step)
        self._writer.add_text("plan", _code_block(plan_text, "json"), start_step)

    def on_step(self, report: StepReport) -> None:
        """Training curves over the step."""
        scalars = {f"train/{name}": value for name, value in report.values.items()}
        scalars |= {
            "throughput/images_per_second": report.timing.images_per_second,
            "time/data_wait_share": report.timing.data_wait_share,
            "time/step_seconds_p50": report.timing.step_seconds_p50,
            "time/step_seconds_p99": report.timing.step_seconds_p99,
            "memory/peak_gib": report.memory_gib,
        }
        scalars |= {f"data/{name}": value for name, value in report.data.figures.items()}
        scalars |= {f"goodput/{name}": value for name, value in report.shares.items()}
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, report.step)

    def on_evaluation(self, report: EvaluationReport) -> None:
        """Evaluation curves over the step."""
        for key, value in report.values.items():
            self._writer.add_scalar(f"eval/{report.name}/{key}", value, report.step)
        self._writer.flush()

    def on_pictures(self, pictures: InputPictures) -> None:
        """One picture: the grid of inputs with their captions."""
        grid = picture_grid(pictures.images, captions=pictures.captions)
        self._writer.add_image("inputs", np.asarray(grid), pictures.step, dataformats="HWC")
        self._writer.flush()

    def on_event(self, event: Event) -> None:
        """The ledger as text, and what can be drawn of it as curves."""
        self._writer.add_text(f"events/{event.kind}", event.message, event.step)
        for name in _CURVES.get(event.kind, ()):
            self._writer.add_scalar(f"checkpoint/{name}", event.details[name], event.step)

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.close()


def _open_lines(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a", encoding="utf-8")


def _write_line(file: TextIO, record: dict[str, object], *, durably: bool = False) -> None:
    try:
        file.write(json.dumps(record) + "\n")
        file.flush()
        if durably:
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(
            f"output: {file.name} cannot be written: {error.strerror}. Make room there, or set output to a folder on a disk with space;"
            " the same command then goes on from the newest checkpoint."
        ) from error


def _code_block(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"
