"""The observers of a run: console, metrics.jsonl, events.jsonl and TensorBoard. They receive values and return nothing."""

import contextlib
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from vitscale.train.append_file import AppendFile
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

    def show(self, text: str) -> None:
        """Print a line. One that cannot be printed, as into a file on a full disk, is left out."""
        with contextlib.suppress(OSError):
            if self._progress is not None:
                self._progress.console.print(text, markup=False)
            else:
                print(text, flush=True)

    def on_step(self, report: StepReport) -> None:
        """One line of the figures people watch."""
        values, timing = report.values, report.timing
        width = len(str(self._num_steps))
        self.show(
            f"step {report.step:>{width}}/{self._num_steps}  loss {values['loss']:.4f}  lr {values['lr']:.2e}"
            f"  grad norm {values['grad_norm']:.3f}  {timing.images_per_second:,.0f} images/s"
            f"  data wait {timing.data_wait_share:.1%}  {report.memory_gib:.2f} GiB"
        )

    def on_evaluation(self, report: EvaluationReport) -> None:
        """One line per evaluation."""
        shown = "  ".join(f"{key} {value:.4f}" if value != int(value) else f"{key} {int(value)}" for key, value in report.values.items())
        self.show(f"step {report.step}  eval/{report.name}  {shown}")

    def on_event(self, event: Event) -> None:
        """The event's message, unless the command says the same as the run ends."""
        if event.kind not in _SHOWN_AS_ERRORS:
            self.show(event.message)

    def close(self) -> None:
        """Take the bar down."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class JsonLinesObserver(_Silent):
    """Appends every report to metrics.jsonl and every event to events.jsonl. On a full disk they wait for room; `warn` is told."""

    def __init__(self, *, metrics: Path, events: Path, warn: Callable[[str], None]) -> None:
        self._metrics = AppendFile(metrics, warn=warn)
        self._events = AppendFile(events, warn=warn)

    def on_step(self, report: StepReport) -> None:
        """All figures of a logged step, and to the events where the time went."""
        self._metrics.write(_json_line({"step": report.step, "samples": report.samples, **report.figures}))
        self._events.write(_json_line({"time": time.time(), **report.spent.record()}))

    def on_evaluation(self, report: EvaluationReport) -> None:
        """An evaluation's values under `eval/<name>/`."""
        values = {f"eval/{report.name}/{key}": value for key, value in report.values.items()}
        self._metrics.write(_json_line({"step": report.step, "samples": report.samples, **values}))

    def on_event(self, event: Event) -> None:
        """An event with its time; durable at once, since it may be the last thing that the run can say."""
        record = {"time": time.time(), "event": event.kind, "step": event.step, "message": event.message, **event.details}
        self._events.write(_json_line(record), durably=True)

    def close(self) -> None:
        """Make both files durable."""
        self._metrics.close()
        self._events.close()


class TensorBoardObserver(_Silent):
    """Curves, the grid of augmented inputs and the configuration, for `tensorboard --logdir`.

    `start_step` hides what an earlier, interrupted attempt wrote of the steps that are done again. On a full disk all of it waits
    for room; `warn` is told. Not by torch's SummaryWriter: the thread in which that writes ends at the first error, and with it
    the file.
    """

    def __init__(self, folder: Path, *, start_step: int, config_text: str, plan_text: str, warn: Callable[[str], None]) -> None:
        self._file = AppendFile(_new_event_file(folder), warn=warn)
        # Makes the bytes of a record: its length, the record, and a checksum of each.
        self._records = RecordWriter(self._file)
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        if start_step:
            restarted = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(step=start_step + 1, session_log=restarted))
        self._add(summary.text("config", _code_block(config_text, "yaml")), start_step)
        self._add(summary.text("plan", _code_block(plan_text, "json")), start_step)

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
            self._add(summary.scalar(tag, value), report.step)

    def on_evaluation(self, report: EvaluationReport) -> None:
        """Evaluation curves over the step."""
        for key, value in report.values.items():
            self._add(summary.scalar(f"eval/{report.name}/{key}", value), report.step)

    def on_pictures(self, pictures: InputPictures) -> None:
        """One picture: the grid of inputs with their captions."""
        grid = picture_grid(pictures.images, captions=pictures.captions)
        self._add(summary.image("inputs", np.asarray(grid), dataformats="HWC"), pictures.step)

    def on_event(self, event: Event) -> None:
        """The ledger as text, and what can be drawn of it as curves."""
        self._add(summary.text(f"events/{event.kind}", event.message), event.step)
        for name in _CURVES.get(event.kind, ()):
            self._add(summary.scalar(f"checkpoint/{name}", event.details[name]), event.step)

    def close(self) -> None:
        """Make the file durable."""
        self._file.close()

    def _add(self, values: summary_pb2.Summary, step: int) -> None:
        self._write(event_pb2.Event(step=step, summary=values))

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _new_event_file(folder: Path) -> Path:
    """A name that TensorBoard reads after those of earlier files, which it takes in the order of their names."""
    begin = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    return next(path for number in itertools.count() if not (path := folder / f"{begin}.{number}").exists())


def _json_line(record: Mapping[str, object]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _code_block(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"
