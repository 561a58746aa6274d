"""Reading sample logs back: the global batches of a run by step, put together from its ranks' files without holding them."""

import heapq
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscale.config import DataError

Ids = npt.NDArray[np.int64]

_RANK_FILE = re.compile(r"rank-(\d+)\.jsonl")
_STEP = re.compile(rb'"step"\s*:\s*(\d+)')
_READ_BYTES = 2**16
"""Read of a file at a time, so that a thousand ranks' logs take megabytes and no open files."""


@dataclass(frozen=True, kw_only=True)
class LoggedStep:
    """The samples of one global batch in order, and the ranks that logged them."""

    step: int
    ids: Ids
    ranks: tuple[int, ...]


def read_logged_steps(run: Path, *, global_batch: int) -> Iterator[LoggedStep]:
    """The global batches that the run in folder `run` logged, in the order of their steps.

    The ranks' slices are joined in rank order, whatever their number at that step. Of a step that a file holds twice, since
    a start went back to an earlier checkpoint, the last writing counts. A torn line is passed over, and so are steps at the end
    that only some ranks reached before they were killed, told by `global_batch`, the batch of the newest start.
    Raises `DataError` when there is no log or it cannot be read.
    """
    files = _rank_files(run)
    merged = heapq.merge(*(_effective_lines(path, rank=rank) for rank, path in files), key=lambda line: (line.step, line.rank))
    return _without_partial_end(_joined(merged), global_batch=global_batch)


@dataclass(frozen=True, kw_only=True)
class _Line:
    step: int
    rank: int
    ids: Ids


@dataclass(frozen=True, kw_only=True)
class _Stretch:
    """Bytes [start, stop) of a file, whose steps rise; those from `before_step` on were logged again later."""

    start: int
    stop: int
    before_step: float


def _rank_files(run: Path) -> list[tuple[int, Path]]:
    found = [(int(match[1]), path) for path in (run / "samples").glob("rank-*.jsonl") if (match := _RANK_FILE.fullmatch(path.name))]
    if not found:
        raise DataError(
            f"{run}: no samples are logged here (samples/rank-00000.jsonl). Train both runs with data.log_samples=true, which may be"
            " switched on at any resume and costs about 10 bytes per sample."
        )
    return sorted(found)


def _joined(lines: Iterator[_Line]) -> Iterator[LoggedStep]:
    for step, group in groupby(lines, key=lambda line: line.step):
        slices = list(group)
        yield LoggedStep(step=step, ids=np.concatenate([line.ids for line in slices]), ranks=tuple(line.rank for line in slices))


def _without_partial_end(steps: Iterator[LoggedStep], *, global_batch: int) -> Iterator[LoggedStep]:
    held: list[LoggedStep] = []
    whole: LoggedStep | None = None
    for step in steps:
        fewer_ranks = whole is None or len(step.ranks) < len(whole.ranks)
        if fewer_ranks and len(step.ids) < global_batch:
            held.append(step)
            continue
        yield from held  # not the end: the global batch was smaller then, or a line is missing, which the reader shall see
        held.clear()
        whole = step
        yield step


def _effective_lines(path: Path, *, rank: int) -> Iterator[_Line]:
    for stretch in _stretches(path):
        for line in _lines(path, start=stretch.start, stop=stretch.stop):
            record = _decode(line)
            if record is not None and record["step"] < stretch.before_step:
                yield _Line(step=record["step"], rank=rank, ids=_ids(record, path=path))


def _ids(record: dict[str, Any], *, path: Path) -> Ids:
    try:
        return np.array(record["ids"], np.int64)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{path}: the line of step {record['step']} holds something else than sample ids; it was changed") from None


def _stretches(path: Path) -> list[_Stretch]:
    """Where the file goes back to an earlier step, it starts another stretch."""
    starts: list[tuple[int, int]] = []  # offset and first step
    offset, previous = 0, -1
    for line in _lines(path, start=0, stop=path.stat().st_size):
        match = _STEP.search(line) if line.endswith(b"\n") else None
        if match is not None:
            step = int(match[1])
            if step <= previous or not starts:
                starts.append((offset, step))
            previous = step
        offset += len(line)
    stretches: list[_Stretch] = []
    stop, before_step = offset, float("inf")
    for start, first_step in reversed(starts):
        stretches.insert(0, _Stretch(start=start, stop=stop, before_step=before_step))
        stop, before_step = start, min(before_step, first_step)
    return stretches


def _lines(path: Path, *, start: int, stop: int) -> Iterator[bytes]:
    """The lines of the bytes [start, stop), which begin and end where a line does."""
    while start < stop:
        try:
            with path.open("rb") as file:
                file.seek(start)
                lines = file.readlines(min(_READ_BYTES, stop - start))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        if not lines:
            return  # cut back by a start of the run meanwhile
        for line in lines:
            start += len(line)
            if start <= stop:
                yield line


def _decode(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None for one that a killed process left unfinished. Further keys are of no concern here."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int) and isinstance(record.get("ids"), list)
    return record if whole else None
