"""The run directory: where everything of a run lies, and how its logs are cut back on a resume."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vitscale.config import ConfigError

_BLOCK_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class RunDirectory:
    """Paths below `runs/<name>/`."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def plan(self) -> Path:
        """What the plan decided, with reasons."""
        return self.root / "plan.json"

    @property
    def environment(self) -> Path:
        """Versions, commit, host and command line of the newest start."""
        return self.root / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step or evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """The ledger: starts, decisions, saves, restarts, stops. Only ever appended to."""
        return self.root / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard event files."""
        return self.root / "tensorboard"

    def rank_log(self, rank: int) -> Path:
        """One rank's log."""
        return self.root / "logs" / f"rank-{rank:05d}.jsonl"

    def sample_log(self, rank: int) -> Path:
        """Sample ids that one rank consumed, a line per step."""
        return self.root / "samples" / f"rank-{rank:05d}.jsonl"

    @property
    def lost_samples(self) -> Path:
        """Folder of the ledger of lost samples."""
        return self.root / "lost_samples"

    def lost_log(self, rank: int) -> Path:
        """Samples that one rank lost and replaced, a line each; never cut back."""
        return self.lost_samples / f"rank-{rank:05d}.jsonl"

    def newest_values(self) -> dict[str, float]:
        """The newest value of every figure in metrics.jsonl. A line that cannot be read, as writers on two machines that have not
        heard of each other leave it, is passed over."""
        values: dict[str, float] = {}
        if self.metrics.exists():
            for line in self.metrics.read_bytes().splitlines():
                with contextlib.suppress(ValueError, TypeError):
                    values |= json.loads(line)
        return {key: value for key, value in values.items() if key not in ("step", "samples")}

    def evaluations_of(self, step: int) -> set[str]:
        """Names of the evaluations whose results at `step` are in metrics.jsonl. Reads only its lines from there on."""
        if not self.metrics.exists():
            return set()
        names: set[str] = set()
        with open(self.metrics, "rb") as file:
            for line in _newest_lines(file):
                at = _step_of(line.content)
                if at < step:
                    break
                if at == step:
                    names |= {key.split("/")[1] for key in json.loads(line.content) if key.startswith("eval/")}
        return names

    def rewind_logs(self, *, step: int) -> None:
        """Drop what the logs say of steps after `step`, which are about to be done again. Rank 0 only."""
        for path in [self.metrics, *sorted((self.root / "samples").glob("rank-*.jsonl"))]:
            if path.exists():
                _keep_lines(path, last_step=step)


@contextlib.contextmanager
def writing(directory: RunDirectory) -> Iterator[None]:
    """Turn a failure to create or open files of the run directory into a `ConfigError` with the file and the remedy."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"output: the run directory {directory.root} cannot be written: {error.filename or directory.root}:"
            f" {error.strerror or error}. Set output to a folder in which this user may create files, on a disk with space."
        ) from error


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that a reader, or a crash, sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line with its newline, and the byte that it begins at."""

    start: int
    content: bytes


def _keep_lines(path: Path, *, last_step: int) -> None:
    """Cut a log of rising steps after its last whole line of a step up to `last_step`; what is kept is not read."""
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        for line in _newest_lines(file):
            if _step_of(line.content) <= last_step:
                break
            end = line.start
        file.truncate(end)
        os.fsync(file.fileno())


def _newest_lines(file: BinaryIO) -> Iterator[_Line]:
    """The lines from the last to the first; each is read when it is asked for."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = _line_start(file, end=end)
        file.seek(start)
        yield _Line(start=start, content=file.read(end - start))
        end = start


def _line_start(file: BinaryIO, *, end: int) -> int:
    """Where the line begins whose last byte is before `end`."""
    position = end - 1  # its own newline, if it has one
    while position:
        begin = max(0, position - _BLOCK_BYTES)
        file.seek(begin)
        found = file.read(position - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        position = begin
    return 0


def _step_of(line: bytes) -> float:
    """The line's step; infinite for the torn last line of a killed process."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
