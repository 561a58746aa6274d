"""The ledger of time: every second of a process's life counts towards exactly one cause."""

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

Cause = Literal["start_up", "compile", "data_wait", "step", "checkpoint", "evaluation", "report", "stop"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
TRAINING: tuple[Cause, ...] = ("compile", "data_wait", "step")
"""What a training step consists of; `compile` is the first one of an attempt or of a stage, in which kernels are built and chosen."""

PRODUCTIVE: Cause = "step"


@dataclass(frozen=True, kw_only=True)
class TimeSlice:
    """Where the time between two reports of one attempt went, with all that is needed to place it without its neighbours.

    `begin` is the wall clock and `monotonic` the monotonic clock of the boot `boot` when the attempt began, both read once;
    the slice begins `after_seconds` later. It holds the steps after `from_step` up to `step`, and `unfinished_seconds` of
    training behind the last whole one. `step_seconds` are the durations of its steps, which are not written.
    """

    attempt: str
    begin: float
    monotonic: float
    boot: str
    after_seconds: float
    from_step: int
    step: int
    seconds: Mapping[str, float]
    unfinished_seconds: float
    step_seconds: tuple[float, ...] = ()

    def record(self) -> dict[str, Any]:
        """The fields of the event `time` in events.jsonl; causes that took no time are left out."""
        return {
            "event": "time",
            "step": self.step,
            "from_step": self.from_step,
            "attempt": self.attempt,
            "begin": self.begin,
            "monotonic": self.monotonic,
            "boot": self.boot,
            "after_seconds": round(self.after_seconds, 6),
            "seconds": {cause: round(seconds, 6) for cause, seconds in self.seconds.items() if seconds >= 5e-7},
            "unfinished_seconds": round(self.unfinished_seconds, 6),
        }


@dataclass(frozen=True, kw_only=True)
class HostSeconds:
    """What this rank's host did in a window of steps: all of it, and of that waiting for the others and for data."""

    steps: float
    collectives: float
    data_wait: float


class TimeLedger:
    """Counts the seconds of one attempt by cause, on the monotonic clock. For one thread.

    It begins with `start_up`; `become` says what goes on from now on, `spent` what a block is spent on. Blocks may be
    nested: the inner one's time is not the outer one's. `seconds_before` is the time that the process has spent on this run
    already, counted as `start_up`.
    """

    def __init__(
        self,
        *,
        seconds_before: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._seconds: dict[Cause, float] = dict.fromkeys(CAUSES, 0.0)
        self._spans = {cause: _Span(self, cause) for cause in CAUSES}
        self._causes: list[Cause] = ["start_up"]
        self._since = self._taken_at = self._begin = clock() - seconds_before
        self._begin_wall = wall_clock() - seconds_before
        self._attempt = uuid.uuid4().hex
        self._boot = _boot_id()
        self._from_step: int | None = None
        self._step_seconds: list[float] = []
        self._counted_training = 0.0
        self._collectives_so_far: Callable[[], float] = _none
        self._collectives_before = self._collective_seconds = 0.0

    def watch_collectives(self, seconds: Callable[[], float]) -> None:
        """Count from now on what of the training steps was spent in collectives. `seconds` says how long this process has waited in
        collectives so far."""
        self._settle()
        self._collectives_so_far, self._collectives_before = seconds, seconds()

    @property
    def host_seconds(self) -> HostSeconds:
        """The training steps since the last slice."""
        self._settle()
        return HostSeconds(steps=self._training(), collectives=self._collective_seconds, data_wait=self._seconds["data_wait"])

    def spent(self, cause: Cause) -> "_Span":
        """A context manager that counts its block towards `cause`."""
        return self._spans[cause]

    def become(self, cause: Cause) -> None:
        """Count what follows towards `cause`, but for blocks that say otherwise. Not inside such a block."""
        assert len(self._causes) == 1, f"become({cause!r}) inside a block of {self._causes[-1]!r}"
        self._settle()
        self._causes[0] = cause

    def step_done(self) -> None:
        """Mark the end of a training step and the begin of the next one."""
        self._settle()
        training = self._training()
        self._step_seconds.append(training - self._counted_training)
        self._counted_training = training

    def take(self, *, step: int | None = None) -> TimeSlice:
        """The time since the last call, or since the begin. `step` is the last step that is done, by default as `step_done`
        has counted them."""
        self._settle()
        step = (self._from_step or 0) + len(self._step_seconds) if step is None else step
        slice_ = TimeSlice(
            attempt=self._attempt,
            begin=self._begin_wall,
            monotonic=self._begin,
            boot=self._boot,
            after_seconds=self._taken_at - self._begin,
            from_step=step if self._from_step is None else self._from_step,
            step=step,
            seconds={cause: seconds for cause, seconds in self._seconds.items()},
            unfinished_seconds=self._training() - self._counted_training,
            step_seconds=tuple(self._step_seconds),
        )
        self._seconds = dict.fromkeys(CAUSES, 0.0)
        self._taken_at, self._from_step = self._since, step
        # A step that is not finished is finished in the next slice: what it took so far is still to be counted there.
        self._step_seconds, self._counted_training = [], -slice_.unfinished_seconds
        self._collective_seconds = 0.0
        return slice_

    def _training(self) -> float:
        return self._seconds["compile"] + self._seconds["data_wait"] + self._seconds["step"]

    def _settle(self) -> None:
        now, cause = self._clock(), self._causes[-1]
        self._seconds[cause] += now - self._since
        self._since = now
        collectives = self._collectives_so_far()
        if cause in TRAINING:
            self._collective_seconds += collectives - self._collectives_before
        self._collectives_before = collectives


class _Span:
    """What `TimeLedger.spent` gives: one for each cause, made once, since all that it remembers lies in the ledger."""

    def __init__(self, ledger: TimeLedger, cause: Cause) -> None:
        self._ledger = ledger
        self._cause: Cause = cause

    def __enter__(self) -> None:
        self._ledger._settle()
        self._ledger._causes.append(self._cause)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ledger._settle()
        self._ledger._causes.pop()


def append_slice(events: Path, slice_: TimeSlice) -> None:
    """Add a slice to events.jsonl where nobody has it open: before the first report and after the last. Raises `OSError`."""
    record = {"time": time.time(), **slice_.record()}
    with open(events, "ab", buffering=0) as file:
        file.write(json.dumps(record).encode() + b"\n")  # one write, so that no other process's line comes in between


class RunningShares:
    """The shares of a run's whole time, over all attempts, as curves: `seconds` are those up to now, by cause."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self._seconds = dict(seconds)

    def add(self, slice_: TimeSlice) -> dict[str, float]:
        """Add a slice, and give each cause's share; that of whole training steps is called `productive`."""
        for cause, seconds in slice_.seconds.items():
            self._seconds[cause] = self._seconds.get(cause, 0.0) + seconds
        total = sum(self._seconds.values())
        shares = {cause: seconds / total if total else 0.0 for cause, seconds in self._seconds.items()}
        return {"productive": shares.pop(PRODUCTIVE, 0.0), **shares}


def _none() -> float:
    return 0.0


def seconds_since_process_start() -> float:
    """The age of this process, its imports included, to a hundredth of a second; 0 where the system does not tell it."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="utf-8")
        # proc_pid_stat(5): field 22, in ticks since the machine was started; field 2 is a name that may hold spaces.
        ticks = int(stat.rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def _boot_id() -> str:
    """What tells whether two readings of the monotonic clock can be compared; empty where the system has no such name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
