"""Shows how far a long command has come: a bar on a terminal, a line now and then elsewhere. Writes to stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(label: str, *, total: int, stream: TextIO | None = None) -> Iterator[Callable[[int], None]]:
    """Give a function that is called with the number of samples done so far."""
    stream = stream or sys.stderr
    with _bar(label, total=total, stream=stream) if stream.isatty() else _lines(label, total=total, stream=stream) as report:
        yield report


@contextmanager
def _bar(label: str, *, total: int, stream: TextIO) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def _lines(label: str, *, total: int, stream: TextIO) -> Iterator[Callable[[int], None]]:
    last_shown = time.monotonic()

    def report(done: int) -> None:
        nonlocal last_shown
        now = time.monotonic()
        if now - last_shown >= _SECONDS_BETWEEN_LINES and done < total:
            last_shown = now
            print(f"{label}: {done} of {total} ({100 * done // total} %)", file=stream, flush=True)

    yield report
