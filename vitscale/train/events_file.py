"""Reading events.jsonl: whole, or as it grows, with the broken lines that killed processes leave."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.config import UsageError
from vitscale.train.run_dir import RunDirectory


@dataclass(frozen=True, kw_only=True)
class EventsFile:
    """What was read: the events in order, how many lines could not be read, and the bytes of all whole lines."""

    events: tuple[dict[str, Any], ...]
    num_torn: int
    num_bytes: int


def read_events(run_dir: Path) -> EventsFile:
    """The events of a run. Raises `UsageError` where there is no such file.

    A process that is killed may leave half a line, and the next one appends to it: what follows in the line is kept.
    """
    events, num_torn = [], 0
    content = _content(run_dir)
    for line in content.splitlines():
        event, is_whole = _parse_torn(line)
        num_torn += not is_whole
        if event is not None:
            events.append(event)
    return EventsFile(events=tuple(events), num_torn=num_torn, num_bytes=content.rfind(b"\n") + 1)


def follow_events(run_dir: Path, *, after: int, wait: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """The events behind the first `after` bytes, then each as soon as it is written, for ever; `wait` is called when there is
    none. A line that is not whole yet is waited for. Raises `UsageError` when the file is gone."""
    rest = b""
    while True:
        new = _content(run_dir, after=after)
        after += len(new)
        *lines, rest = (rest + new).split(b"\n")
        for line in lines:
            event, _ = _parse_torn(line)
            if event is not None:
                yield event
        if not new:
            wait()


def _content(run_dir: Path, *, after: int = 0) -> bytes:
    path = RunDirectory(root=run_dir).events
    try:
        with open(path, "rb") as file:
            file.seek(after)
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{run_dir}: no run directory with an events.jsonl; give the folder of a run that was started, <output>/<name> of its"
            " configuration"
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None


def _parse_torn(line: bytes) -> tuple[dict[str, Any] | None, bool]:
    """The event of a line, or the one behind the torn begin of another, and whether the line was whole."""
    event = _parse(line)
    if event is not None:
        return event, True
    begin = line.rfind(b'{"time": ')
    return (_parse(line[begin:]) if begin > 0 else None), False


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None
