"""The goodput of a run, read from its events.jsonl: what the wall time was spent on, what went wrong, how often to save."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitscale.train.checkpoint_interval import FailureModel
from vitscale.train.events_file import read_events
from vitscale.train.goodput import PRODUCTIVE
from vitscale.train.goodput_timeline import RUN_CAUSES, Attempt, Timeline, make_timeline, without
from vitscale.train.run_dir import RunDirectory

_WORK = ("compile", "data_wait", "step", "evaluation", "report")
_UNASKED = ("failed", "died")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What happened, how often. `restarts` counts the supervision's reasons; lost samples are counted, not the events that tell them."""

    attempts: int
    failures: int
    restarts: dict[str, int]
    saves: int
    failed_saves: int
    lost_samples: int
    skipped_steps: int
    hangs: int
    stragglers: int
    events: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class SaveInterval:
    """The interval between saves, in seconds of work: the run's own, and the best one by `model`, with the goodput that each
    is expected to give. `best_steps` is None where no step was kept."""

    model: FailureModel
    seconds: float
    expected_goodput: float
    best_seconds: float
    best_steps: int | None
    best_expected_goodput: float


@dataclass(frozen=True, kw_only=True)
class GoodputReport:
    """`seconds` by cause sum to `wall_seconds`, the time from the first start to the last record; that between a requested
    stop and the next start counts only where it was asked for. `records` are the events, from the first `num_bytes`
    of the file, `notes` what had to be assumed."""

    run_dir: Path
    seconds: dict[str, float]
    counts: Counts
    mean_seconds_between_failures: float | None
    save_interval: SaveInterval | None
    timeline: Timeline
    notes: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]
    num_bytes: int

    @property
    def wall_seconds(self) -> float:
        """All of it."""
        return sum(self.seconds.values())

    @property
    def shares(self) -> dict[str, float]:
        """The seconds as shares of the wall time."""
        wall = self.wall_seconds
        return {cause: seconds / wall if wall else 0.0 for cause, seconds in self.seconds.items()}

    @property
    def goodput(self) -> float:
        """The share of wall time that went into training steps which were kept."""
        return self.shares.get(PRODUCTIVE, 0.0)

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The attempts in order."""
        return self.timeline.attempts

    def to_json(self) -> str:
        """Everything but the events and the segments."""
        values = {
            "run": str(self.run_dir),
            "wall_seconds": self.wall_seconds,
            "goodput": self.goodput,
            "seconds": self.seconds,
            "shares": self.shares,
            "counts": asdict(self.counts),
            "mean_seconds_between_failures": self.mean_seconds_between_failures,
            "save_interval": None if self.save_interval is None else asdict(self.save_interval),
            "attempts": [asdict(attempt) for attempt in self.attempts],
            "notes": list(self.notes),
        }
        return json.dumps(values, indent=2)


def read_goodput(run_dir: Path, *, include_stopped: bool = False) -> GoodputReport:
    """Read the ledger of a run, of any number of attempts, also of one that goes on. Raises `UsageError` where there is none."""
    directory = RunDirectory(root=run_dir)
    file = read_events(run_dir)
    timeline = make_timeline(file.events)
    if not include_stopped:
        timeline = without(timeline, "stopped")
    seconds = dict.fromkeys(RUN_CAUSES, 0.0)
    for segment in timeline.segments:
        seconds[segment.cause] = seconds.get(segment.cause, 0.0) + segment.seconds
    if not include_stopped:
        del seconds["stopped"]
    counts = _count(file.events, attempts=timeline.attempts)
    between = (sum(seconds.values()) - seconds.get("stopped", 0.0)) / counts.failures if counts.failures else None
    return GoodputReport(
        run_dir=run_dir,
        seconds=seconds,
        counts=counts,
        mean_seconds_between_failures=between,
        save_interval=_save_interval(seconds, counts=counts, between_failures=between, num_steps=_steps_kept(timeline.attempts)),
        timeline=timeline,
        notes=(*_notes(directory, timeline=timeline, num_torn=file.num_torn), *timeline.notes),
        records=file.events,
        num_bytes=file.num_bytes,
    )


def _notes(directory: RunDirectory, *, timeline: Timeline, num_torn: int) -> list[str]:
    notes = []
    if not timeline.attempts:
        notes.append(f"{directory.events} has no records of time: the run ended before it began, or an earlier version wrote them.")
    if num_torn:
        lines = "1 line" if num_torn == 1 else f"{num_torn} lines"
        notes.append(f"{lines} of {directory.events} could not be read, as a killed process leaves them, and passed over.")
    return notes


def _count(records: Sequence[Mapping[str, Any]], *, attempts: Sequence[Attempt]) -> Counts:
    kinds = Counter(str(record["event"]) for record in records if record["event"] != "time")
    reasons = Counter(str(record.get("reason", "not told")) for record in records if record["event"] in ("restart", "shrink"))
    return Counts(
        attempts=len(attempts),
        failures=sum(attempt.outcome in _UNASKED for attempt in attempts),
        restarts=dict(reasons),
        saves=kinds["checkpoint"],
        failed_saves=kinds["save_failed"],
        lost_samples=sum(_whole(record.get("count")) for record in records if record["event"] == "lost_samples"),
        skipped_steps=len({record.get("step") for record in records if record["event"] == "skipped_step"}),  # done again, told again
        hangs=kinds["hang"],
        stragglers=kinds["straggler"],
        events=dict(sorted(kinds.items())),
    )


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _steps_kept(attempts: Sequence[Attempt]) -> int:
    """Steps done and not done again."""
    kept, redone_from = 0, math.inf
    for attempt in reversed(attempts):
        kept += max(0, int(min(attempt.step, redone_from)) - attempt.from_step)
        redone_from = min(redone_from, attempt.from_step)
    return kept


def _save_interval(seconds: Mapping[str, float], *, counts: Counts, between_failures: float | None, num_steps: int) -> SaveInterval | None:
    """None before the first save or the first failure: there is then nothing to compute with."""
    if between_failures is None or not counts.saves or not seconds["checkpoint"]:
        return None
    model = FailureModel(
        save_stall_seconds=seconds["checkpoint"] / counts.saves,
        mean_seconds_between_failures=between_failures,
        restart_seconds=seconds["restart"] / counts.failures,
    )
    work = sum(seconds[cause] for cause in _WORK)
    productive = seconds[PRODUCTIVE] / work if work else 0.0
    interval, best = (work + seconds["lost_work"]) / counts.saves, model.best_interval_seconds
    return SaveInterval(
        model=model,
        seconds=interval,
        expected_goodput=productive * model.useful_share(interval),
        best_seconds=best,
        best_steps=max(1, round(best * num_steps / work)) if num_steps and work else None,
        best_expected_goodput=productive * model.useful_share(best),
    )
