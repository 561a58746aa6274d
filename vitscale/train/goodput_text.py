"""What `vitscale events` prints: where the time went, what went wrong, how often to save, and the newest events."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from vitscale.train.goodput import PRODUCTIVE
from vitscale.train.goodput_report import GoodputReport, SaveInterval

MEANINGS = {
    "start_up": "imports, data sets, engine, first weights",
    "compile": "the first step of an attempt or a stage",
    "data_wait": "steps waiting for their batch",
    "step": "training steps that were kept",
    "checkpoint": "saves holding training up",
    "evaluation": "evaluations",
    "report": "metrics, TensorBoard, pictures",
    "stop": "closing down",
    "lost_work": "steps done again, and what died with a process",
    "restart": "noticing a failure, pausing, starting up again",
    "waiting_for_resources": "too few machines",
    "unrecorded": "records of time that are missing",
    "stopped": "between a requested stop and the next start",
}


def print_goodput(report: GoodputReport, *, console: Console) -> None:
    """The tables. Causes that took no time are left out."""
    console.print(f"[bold]{report.run_dir}[/bold]")
    if report.wall_seconds:
        console.print(_time_table(report))
    for line in _count_lines(report):
        console.print(line, markup=False)
    for note in report.notes:
        console.print(f"note: {note}", markup=False)


def event_lines(events: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each: local time, step, kind, and the first line of the message."""
    for event in events:
        at = event.get("time")
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if isinstance(at, int | float) else "-" * 19
        message = str(event.get("message", "")).partition("\n")[0] or _fields(event)
        yield f"{when}  {event.get('step', ''):>8}  {event['event']!s:<13}  {message}"


def duration(seconds: float) -> str:
    """Readable at a glance: 0.42 s, 12.3 s, 4 min 05 s, 3 h 07 min, 2 d 03 h."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part:02d} {part_name}"
    raise AssertionError(seconds)


def _time_table(report: GoodputReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cause")
    table.add_column("time", justify="right")
    table.add_column("share", justify="right")
    table.add_column("")
    shares = report.shares
    for cause, seconds in report.seconds.items():
        if seconds:
            style = "green" if cause == PRODUCTIVE else "red" if cause in ("lost_work", "unrecorded") else None
            table.add_row(cause, duration(seconds), f"{shares[cause]:.2%}", MEANINGS.get(cause, ""), style=style)
    table.add_section()
    table.add_row("all", duration(report.wall_seconds), f"{sum(shares.values()):.2%}", f"goodput {report.goodput:.2%}", style="bold")
    return table


def _count_lines(report: GoodputReport) -> Iterator[str]:
    counts = report.counts
    outcome = f", the newest {report.attempts[-1].outcome}" if report.attempts else ""
    yield f"attempts {counts.attempts}{outcome}; failures {counts.failures}; saves {counts.saves}, failed {counts.failed_saves}"
    for reason, number in sorted(counts.restarts.items(), key=lambda item: -item[1]):
        yield f"restarts {number}: {reason}"
    yield (
        f"lost samples {counts.lost_samples}; skipped steps {counts.skipped_steps}; hangs {counts.hangs}; stragglers {counts.stragglers}"
    )
    between = report.mean_seconds_between_failures
    if between is not None:
        yield f"mean time between failures {duration(between)}"
    if report.save_interval is not None:
        yield from _interval_lines(report.save_interval)


def _interval_lines(found: SaveInterval) -> Iterator[str]:
    steps = "" if found.best_steps is None else f", about every {found.best_steps} steps (checkpoint.every_steps)"
    yield (
        f"a save holds training up for {duration(found.model.save_stall_seconds)}, a restart takes {duration(found.model.restart_seconds)}"
    )
    yield f"saved after {duration(found.seconds)} of work on average: expected goodput {found.expected_goodput:.1%}"
    yield f"best by Young and Daly: {duration(found.best_seconds)}{steps}: expected goodput {found.best_expected_goodput:.1%}"


def _fields(event: Mapping[str, Any]) -> str:
    """For an event without a message."""
    return "  ".join(f"{key}={value}" for key, value in event.items() if key not in ("time", "event", "step"))
