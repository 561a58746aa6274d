"""Shows how far a long command has come: a bar on a terminal, a line now and then elsewhere. Writes to stderr."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol, TextIO

Unit = Literal["items", "bytes"]

_SECONDS_BETWEEN_LINES = 10.0


class Watch(Protocol):
    """Who is told of long work: `progress`, or `silent`."""

    def __call__(self, label: str, *, total: int, unit: Unit = "items") -> AbstractContextManager[Callable[[int], None]]:
        """Give a function that is called with what is done so far."""


@contextmanager
def progress(label: str, *, total: int, unit: Unit = "items", stream: TextIO | None = None) -> Iterator[Callable[[int], None]]:
    """Give a function that is told the items or bytes done so far, by any thread."""
    stream = stream or sys.stderr
    shown = _bar if stream.isatty() else _lines
    with shown(label, total=total, unit=unit, stream=stream) as report:
        yield report


@contextmanager
def silent(label: str, *, total: int, unit: Unit = "items") -> Iterator[Callable[[int], None]]:  # noqa: ARG001
    """Show nothing: for a caller that is no command."""
    yield lambda _done: None


def format_size(num_bytes: int) -> str:
    """Bytes in the unit that suits them."""
    size = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


@contextmanager
def _bar(label: str, *, total: int, unit: Unit, stream: TextIO) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    done_columns = (DownloadColumn(binary_units=True), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *done_columns, TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def _lines(label: str, *, total: int, unit: Unit, stream: TextIO) -> Iterator[Callable[[int], None]]:
    lock = threading.Lock()
    last_shown = time.monotonic()

    def report(done: int) -> None:
        nonlocal last_shown
        with lock:
            if time.monotonic() - last_shown >= _SECONDS_BETWEEN_LINES and done < total:
                last_shown = time.monotonic()
                shown = f"{format_size(done)} of {format_size(total)}" if unit == "bytes" else f"{done} of {total}"
                print(f"{label}: {shown} ({100 * done // total} %)", file=stream, flush=True)

    yield report
