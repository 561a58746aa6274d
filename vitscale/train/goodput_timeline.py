"""The wall time of a run with any number of attempts, cut into stretches with one cause each: what events.jsonl proves of it."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from vitscale.config import StopRequested
from vitscale.train.goodput import CAUSES, TRAINING

RUN_CAUSES: tuple[str, ...] = (*CAUSES, "lost_work", "restart", "waiting_for_resources", "unrecorded", "stopped")
"""The causes of an attempt's own time, then those that only show when the attempts are put one after the other."""

_NEW_STARTS = ("restart", "shrink")
_DEATHS = ("worker_failed", *_NEW_STARTS)
_NOTICED = ("hang", "wait", "gave_up", *_DEATHS)
_JUMP_SECONDS = 2.0

Outcome = Literal["finished", "stopped", "failed", "died", "open"]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of wall time, from `begin` seconds after the run began. `attempt` counts from 0; what lies between two
    attempts belongs to the later one."""

    begin: float
    seconds: float
    cause: str
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One process's try at the run. `begin` is the wall clock's; `outcome` is `died` where a process went without a word, and
    `open` for the newest one if it has not told its end: it goes on, or has died."""

    id: str
    begin: float
    seconds: float
    from_step: int
    step: int
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """All segments in order, gapless; `notes` say what had to be assumed."""

    segments: tuple[Segment, ...]
    attempts: tuple[Attempt, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Slice:
    """A `time` event as read."""

    after_seconds: float
    from_step: int
    step: int
    seconds: dict[str, float]
    unfinished_seconds: float

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def end(self) -> float:
        return self.after_seconds + self.total


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What the file says of one attempt: its slices, and the events from its first slice to the next attempt's."""

    id: str
    begin: float
    monotonic: float
    boot: str
    slices: list[_Slice]
    events: list[Mapping[str, Any]]
    later_events: list[Mapping[str, Any]]
    """Those of `events` that stand behind the last slice."""

    @property
    def from_step(self) -> int:
        return self.slices[0].from_step

    @property
    def seconds(self) -> float:
        return self.slices[-1].end


def make_timeline(records: Sequence[Mapping[str, Any]]) -> Timeline:
    """Place the attempts of events.jsonl one after the other and say what all the time was spent on.

    Inside an attempt the monotonic clock counts. Between two attempts it does where the machine was not started in between,
    else the wall clock; a difference below zero counts as none, and is told.
    """
    before, told = _read_attempts(records)
    outcomes = [_outcome(attempt, is_last=attempt is told[-1]) for attempt in told]
    builder = _Builder()
    for number, attempt in enumerate(told):
        builder.attempt = number
        if number == 0:
            builder.add("waiting_for_resources", _waited(before))
            overlap = 0.0
        else:
            overlap = _add_gap(builder, told[number - 1], attempt, outcome=outcomes[number - 1])
        is_restart = number > 0 and outcomes[number - 1] not in ("finished", "stopped")
        redone_from = min((later.from_step for later in told[number + 1 :]), default=math.inf)
        broke_off = outcomes[number] in ("failed", "died")
        _add_attempt(builder, attempt, redone_from=redone_from, broke_off=broke_off, is_restart=is_restart, overlap=overlap)
    attempts = tuple(
        Attempt(
            id=attempt.id,
            begin=attempt.begin,
            seconds=attempt.seconds,
            from_step=attempt.from_step,
            step=attempt.slices[-1].step,
            outcome=outcome,
        )
        for attempt, outcome in zip(told, outcomes, strict=True)
    )
    return Timeline(segments=tuple(builder.segments), attempts=attempts, notes=tuple(builder.notes))


class _Builder:
    """Appends segments behind each other."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.notes: list[str] = []
        self.attempt = 0
        self._now = 0.0

    def add(self, cause: str, seconds: float) -> None:
        if seconds > 0:
            self.segments.append(Segment(begin=self._now, seconds=seconds, cause=cause, attempt=self.attempt))
            self._now += seconds


def _read_attempts(records: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[_Told]]:
    """The events before the first attempt, and the attempts by their begin in the file."""
    before: list[Mapping[str, Any]] = []
    told: list[_Told] = []
    for record in records:
        slice_ = _slice(record) if record.get("event") == "time" else None
        if slice_ is None:
            for waiting in (told[-1].events, told[-1].later_events) if told else (before,):
                waiting.append(record)
            continue
        if not told or told[-1].id != record["attempt"]:
            place = {"begin": float(record["begin"]), "monotonic": float(record["monotonic"]), "boot": str(record["boot"])}
            told.append(_Told(id=str(record["attempt"]), **place, slices=[], events=[], later_events=[]))  # type: ignore[arg-type]
        told[-1].slices.append(slice_)
        told[-1].later_events.clear()
    return before, told


def _slice(record: Mapping[str, Any]) -> _Slice | None:
    """None where the event is not as this version writes it: it is then as unknown as any other."""
    try:
        for name in ("attempt", "begin", "monotonic", "boot"):
            record[name]
        return _Slice(
            after_seconds=float(record["after_seconds"]),
            from_step=int(record["from_step"]),
            step=int(record["step"]),
            seconds={str(cause): max(0.0, float(seconds)) for cause, seconds in record["seconds"].items()},
            unfinished_seconds=float(record["unfinished_seconds"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _outcome(attempt: _Told, *, is_last: bool) -> Outcome:
    for event in reversed(attempt.events):
        if event["event"] == "finished":
            return "finished"
        if event["event"] == "ended":
            return "stopped" if event.get("exit_code") == StopRequested.exit_code else "failed"
    return "open" if is_last else "died"


def _add_attempt(builder: _Builder, attempt: _Told, *, redone_from: float, broke_off: bool, is_restart: bool, overlap: float) -> None:
    for slice_, hole in _with_holes(attempt.slices):
        builder.add("unrecorded", hole)
        seconds = dict(slice_.seconds)
        # A process that called train twice has one age: what was before the second call is the first one's time.
        start_up = seconds.pop("start_up", 0.0)
        trimmed, overlap = min(overlap, start_up), max(0.0, overlap - start_up)
        builder.add("restart" if is_restart else "start_up", start_up - trimmed)
        unfinished = slice_.unfinished_seconds if broke_off and slice_ is attempt.slices[-1] else 0.0
        lost = _lost_share(slice_, redone_from=redone_from, unfinished=unfinished)
        for cause in sorted(seconds, key=_rank):
            share = lost if cause in TRAINING else 0.0
            builder.add(cause, seconds[cause] * (1 - share))
        builder.add("lost_work", lost * sum(seconds.get(cause, 0.0) for cause in TRAINING))


def _with_holes(slices: Sequence[_Slice]) -> Iterator[tuple[_Slice, float]]:
    """Each slice, and how much time before it no slice tells of: its line could not be written, or not be read."""
    end = 0.0
    for slice_ in slices:
        hole = slice_.after_seconds - end
        yield slice_, hole if hole > 1e-3 else 0.0
        end = slice_.end


def _rank(cause: str) -> int:
    return RUN_CAUSES.index(cause) if cause in RUN_CAUSES else len(RUN_CAUSES)


def _lost_share(slice_: _Slice, *, redone_from: float, unfinished: float) -> float:
    """Which part of a slice's training time went into steps that a later attempt did again, or into none."""
    training = sum(slice_.seconds.get(cause, 0.0) for cause in TRAINING)
    if not training:
        return 0.0
    num_steps = slice_.step - slice_.from_step
    num_redone = slice_.step - max(slice_.from_step, redone_from)
    redone = min(1.0, max(0.0, num_redone / num_steps)) if num_steps else float(slice_.step > redone_from)
    unfinished = min(unfinished, training)
    return (redone * (training - unfinished) + unfinished) / training


def _add_gap(builder: _Builder, earlier: _Told, later: _Told, *, outcome: Outcome) -> float:
    """Account for the time between two attempts; returns by how much they overlap instead."""
    wall_end = earlier.begin + earlier.seconds
    by_wall = later.begin - wall_end
    same_boot = bool(earlier.boot) and earlier.boot == later.boot
    gap = later.monotonic - earlier.monotonic - earlier.seconds if same_boot else by_wall
    jump = by_wall - gap
    if abs(jump) > _JUMP_SECONDS:
        way = "forwards" if jump > 0 else "back"
        builder.notes.append(
            f"The clock was set {way} by {abs(jump):,.0f} s between attempts {builder.attempt} and {builder.attempt + 1};"
            " the time between them is taken from the machine's uptime."
        )
    if gap < -_JUMP_SECONDS and not same_boot:
        builder.notes.append(
            f"By the clocks of its machine, attempt {builder.attempt + 1} began {-gap:,.0f} s before the end of attempt {builder.attempt};"
            " the time between them, which cannot be known, counts as none."
        )
    if gap <= 0:
        return -gap if same_boot else 0.0
    waited = min(_waited(earlier.events), gap)
    if outcome in ("finished", "stopped"):
        builder.add("stopped", gap - waited)
        builder.add("waiting_for_resources", waited)
        return 0.0
    tail = _tail(builder, earlier, gap=gap, wall_end=wall_end, next_begin=later.begin) if outcome == "died" else 0.0
    waited = min(waited, gap - tail)
    builder.add("lost_work", tail)
    builder.add("waiting_for_resources", waited)
    builder.add("restart", gap - tail - waited)
    return 0.0


def _tail(builder: _Builder, attempt: _Told, *, gap: float, wall_end: float, next_begin: float) -> float:
    """How long a process that died went on, or hung, behind its last slice: until the supervision noticed, where it did.

    Else it may have been anything up to one interval of reports, and half of one is assumed.
    """
    before_last_slice = attempt.events[: len(attempt.events) - len(attempt.later_events)]
    if any(event["event"] in _DEATHS for event in before_last_slice):
        return 0.0
    noticed = [_number(event.get("time")) for event in attempt.later_events if event["event"] in _NOTICED]
    if noticed:
        # The clock may have been set before or after that moment: the distance to the other end is then the right one.
        candidates = (noticed[0] - wall_end, gap - (next_begin - noticed[0]))
        found = next((seconds for seconds in candidates if -_JUMP_SECONDS <= seconds <= gap + _JUMP_SECONDS), None)
        if found is not None:
            return min(gap, max(0.0, found))
    usual = statistics.median(slice_.total for slice_ in attempt.slices[1:]) if len(attempt.slices) > 1 else 0.0
    builder.notes.append(
        f"Attempt {builder.attempt} died without a word between two reports, and nothing tells when: of the {gap:,.1f} s to the next"
        f" one up to {min(gap, usual):,.1f} s are lost work, and half of that is counted as such, the rest as restart."
    )
    return min(gap, usual / 2)


def _waited(events: Sequence[Mapping[str, Any]]) -> float:
    """Seconds that the supervision waited for resources: from its first `wait`, each of which tells how long so far, to what came
    of it."""
    total, longest, since = 0.0, 0.0, math.nan
    for event in events:
        time = _number(event.get("time"))
        if event["event"] == "wait":
            longest = max(longest, _number(event.get("seconds")))
            since = time - longest if math.isnan(since) else since
        elif event["event"] in (*_NEW_STARTS, "gave_up"):
            total += max(longest, 0.0 if math.isnan(since) else time - since)
            longest, since = 0.0, math.nan
    return total + longest


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def without(timeline: Timeline, cause: str) -> Timeline:
    """The timeline with all segments of a cause cut out and the rest moved together."""
    builder = _Builder()
    for segment in timeline.segments:
        builder.attempt = segment.attempt
        if segment.cause != cause:
            builder.add(segment.cause, segment.seconds)
    return replace(timeline, segments=tuple(builder.segments))
