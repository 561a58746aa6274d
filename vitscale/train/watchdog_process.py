"""The watchdog's own small process: looks at the signs of life of the rank that started it, and ends the rank when they stop.

It shares no interpreter with the rank, so that nothing which stops the rank stops it; and it ends as soon as the rank does.
"""

import contextlib
import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from vitscale.train.hang_rules import (
    Blame,
    Condition,
    RankState,
    SilenceClock,
    find_culprits,
    hang_message,
    lost_message,
    ranks_to_tell_of,
    ranks_waited_for,
)
from vitscale.train.hang_stacks import RankProcess, dump_stacks
from vitscale.train.heartbeat import map_heartbeat, read_signs

# Starts in 50 ms with 13 MiB because it imports nothing but the standard library and the three files above.

T = TypeVar("T")

CLOSE = b"c"
"""What the rank sends when it needs no watchdog any more."""

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP)
_LOOK_SECONDS = 0.25
_PUBLISH_SECONDS = 5.0
_QUIET_SECONDS = 1.0
"""From here on the process itself is looked at too."""
_EARLY_SECONDS = 3.0
"""How long before the limit the states of the others are looked at."""
_LOST_SECONDS = 8.0
"""A watchdog that has published nothing for so long is lost."""
_SETTLE_SECONDS = 2.0
_VICTIM_SECONDS = 1.0
_ALARM_SECONDS = 5.0
_STATE_BYTES = 1024
_STDERR = 2


@dataclass(frozen=True, kw_only=True)
class WatchTask:
    """What a rank tells its watchdog: who it is, and the descriptors of its heartbeat, its stacks and the pipe between them.
    `hang_seconds` None means auto."""

    pid: int
    rank: int
    world_size: int
    attempt: str
    run_dir: str
    heartbeat: int
    stacks: int
    control: int
    hang_seconds: float | None
    start_seconds: float
    py_spy: str | None


def main(task_text: str) -> None:
    """Watch until the rank ends, closes its watchdog or has to be ended. A failure of the watchdog itself lands in the logs."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    task = WatchTask(**json.loads(task_text))
    try:
        Watch(task).run()
    except Exception:
        import traceback

        with open(Path(task.run_dir) / "logs" / f"watchdog-rank-{task.rank:05d}.txt", "a") as file:
            file.write(traceback.format_exc())
        os._exit(1)
    # Not by way of threads that a dead file system holds.
    os._exit(0)


class Watch:
    """One rank's watchdog."""

    def __init__(self, task: WatchTask) -> None:
        self._task = task
        self._process = RankProcess(task.pid)
        self._memory = map_heartbeat(task.heartbeat)
        self._clock = SilenceClock(read_signs(self._memory), hang_seconds=task.hang_seconds, start_seconds=task.start_seconds)
        self._board = StateBoard(Path(task.run_dir) / "heartbeats", rank=task.rank, world_size=task.world_size, attempt=task.attempt)
        self._aside = Aside()
        self._state = RankState(attempt=task.attempt, rank=task.rank, host=os.uname().nodename, pid=task.pid)
        self._condition = Condition()
        self._has_told = False
        self._next_publication = self._next_reading = 0.0

    def run(self) -> None:
        """Watch to the end."""
        last = time.monotonic()
        self._publish(wait_seconds=0.0)
        while (message := self._wait()) is None:
            now = time.monotonic()
            self._clock.look(read_signs(self._memory), elapsed=now - last)
            last = now
            hung = self._is_hung()
            if now >= self._next_publication:
                self._publish(wait_seconds=0.0)
            if hung and self._alarm():
                return
        if message == CLOSE:
            self._aside.run(lambda: self._board.close(self._state), seconds=_SETTLE_SECONDS)

    def _wait(self) -> bytes | None:
        """What the rank says, empty when it has ended; None when the time for the next look has come."""
        poller = select.poll()
        for descriptor in (self._task.control, self._process.descriptor):
            if descriptor is not None:
                poller.register(descriptor, select.POLLIN)
        ready = [descriptor for descriptor, _ in poller.poll(_LOOK_SECONDS * 1000)]
        if self._task.control in ready:
            return os.read(self._task.control, 1)
        return b"" if ready or os.getppid() != self._task.pid else None

    def _is_hung(self) -> bool:
        silent = self._clock.seconds
        if silent < _QUIET_SECONDS:
            self._process.has_shown_life()
            self._condition = Condition()
            return False
        self._condition = self._process.condition(silent_seconds=silent)
        if self._condition.traced:
            self._clock.restart()
            return False
        limit = self._limit
        if silent >= limit - _EARLY_SECONDS and time.monotonic() >= self._next_reading:
            self._next_reading = time.monotonic() + 0.5
            self._aside.run(self._board.read, seconds=1.0)
        if silent >= limit / 2 and any(other.alarm for other in self._board.answering.values()):
            return True  # somebody is certain that the run hangs: the stacks of all ranks belong together
        if silent < limit:
            return False
        if not self._condition.stopped and ranks_waited_for(self._shown(), self._board.answering.values()):
            self._clock.excuse()
            return False
        return True

    @property
    def _limit(self) -> float:
        return self._clock.limit(self._condition)

    def _shown(self) -> RankState:
        clock = self._clock
        return self._state.showing(clock.signs, silent_seconds=clock.seconds, limit_seconds=self._limit, stopped=self._condition.stopped)

    def _publish(self, *, wait_seconds: float) -> None:
        self._state = state = self._shown()
        is_calm = state.silent_seconds < self._limit / 2
        self._next_publication = time.monotonic() + min(self._limit / 8, _PUBLISH_SECONDS if is_calm else 1.0)
        self._aside.run(lambda: self._board.publish(state), seconds=wait_seconds)

    def _alarm(self) -> bool:
        """Put everything on disk that tells of the hang, and end the rank; it is ended in time even if nothing can be written.

        False when the rank goes on after all.
        """
        is_over: bool | None = None
        try:
            is_over = self._aside.run(self._tell, seconds=_ALARM_SECONDS)
        finally:
            if is_over is not False:
                self._process.send(signal.SIGKILL)
        if is_over is None and not self._has_told:
            state = self._state
            message = hang_message(state, states={state.rank: state}, blame=Blame(ranks=(state.rank,), certain=True))
            _say(f"{message}. The run directory took no record of it")
        return is_over is not False

    def _tell(self) -> bool:
        begin = time.monotonic()
        self._state = state = replace(self._shown(), alarm=True)
        self._board.publish(state)
        stacks = self._write_stacks()
        self._board.publish(replace(state, published=state.published + 1, dumped=True))
        while time.monotonic() < begin + _SETTLE_SECONDS and not self._board.has_every_dump:
            time.sleep(0.1)
            self._board.read()
        if not state.stopped and read_signs(self._memory) != self._clock.signs:
            self._state = replace(state, published=state.published + 1, alarm=False)
            return False
        states = self._board.answering | {state.rank: state}
        blame = find_culprits(states, lost=self._board.lost)
        running = [rank for rank, other in states.items() if not other.closed]
        to_tell = ranks_to_tell_of(state.rank, blame=blame, answering=running)
        for rank in to_tell:
            if rank in states or not blame.certain:
                message = hang_message(states[rank], states=states, blame=blame)
            else:
                message = lost_message(rank, last=self._board.last.get(rank))
            self._append_event(states.get(rank, state), ranks=(rank,) if blame.certain else blame.ranks, message=message, stacks=stacks)
            _say(message)
            if not blame.certain:
                break
        self._has_told = True
        if state.rank not in blame.ranks or not to_tell:
            # So that the launcher sees the culprit's end first, and ends no watchdog that is about to tell of it.
            time.sleep(_VICTIM_SECONDS)
        return True

    def _write_stacks(self) -> str:
        """The file, relative to the run directory."""
        task, state = self._task, self._state
        text = dump_stacks(self._process, descriptor=task.stacks, stopped=state.stopped, py_spy=task.py_spy)
        folder = Path(task.run_dir) / "logs"
        number = len(list(folder.glob(f"hang-rank-{task.rank:05d}-*.txt"))) + 1
        path = folder / f"hang-rank-{task.rank:05d}-{number}.txt"
        seconds = f"{state.silent_seconds:.1f} s without a sign of life"
        header = f"rank {task.rank}, process {task.pid} on {state.host}: {seconds}, in {state.place}"
        path.write_text(f"{header}\n\n{text}\n{self._process.describe()}\n")
        return str(path.relative_to(task.run_dir))

    def _append_event(self, state: RankState, *, ranks: tuple[int, ...], message: str, stacks: str) -> None:
        record = {
            "time": time.time(),
            "event": "hang",
            "step": state.step,
            "message": message,
            "rank": ranks[0] if len(ranks) == 1 else None,
            "ranks": ranks,
            "phase": state.phase,
            "seconds": state.silent_seconds,
            "stacks": stacks,
        }
        # One write, so that the line of another process cannot come in between.
        descriptor = os.open(Path(self._task.run_dir) / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(descriptor, (json.dumps(record) + "\n").encode())
        os.fsync(descriptor)
        os.close(descriptor)


def _say(message: str) -> None:
    """For whoever sits at the rank's terminal, where the shell says no more than "Killed"."""
    with contextlib.suppress(OSError):
        os.write(_STDERR, f"vitscale: {message}\n".encode())


class StateBoard:
    """The states of all ranks, a small file each in a folder that all of them see.

    A file is written in place and opened anew for each reading: that is what a network file system keeps up to date.
    """

    def __init__(self, folder: Path, *, rank: int, world_size: int, attempt: str) -> None:
        self._folder = folder
        self._rank = rank
        self._attempt = attempt
        self._others = [other for other in range(world_size) if other != rank]
        self.last: dict[int, RankState] = {}
        self._changed: dict[int, float] = {}

    def publish(self, state: RankState) -> None:
        """Show this rank's state to the others."""
        descriptor = os.open(self._path(self._rank), os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, state.to_json().ljust(_STATE_BYTES - 1).encode() + b"\n", 0)
        finally:
            os.close(descriptor)

    def close(self, state: RankState) -> None:
        """Show that this rank has come to its end."""
        self.publish(replace(state, published=state.published + 1, silent_seconds=0.0, closed=True))

    def read(self) -> None:
        """Look at the states of the others."""
        now = time.monotonic()
        for rank in self._others:
            with contextlib.suppress(OSError, ValueError):  # not there yet, or caught half written: what is known stays
                state = RankState.from_json(self._path(rank).read_text())
                known = self.last.get(rank)
                if state.attempt == self._attempt and (known is None or state != known):
                    self.last[rank] = state
                    self._changed[rank] = now

    @property
    def answering(self) -> dict[int, RankState]:
        """The states of the others whose watchdogs are at work."""
        lost = set(self.lost)
        return {rank: state for rank, state in self.last.items() if rank not in lost}

    @property
    def lost(self) -> list[int]:
        """The others of whom nothing new has come."""
        return [rank for rank in self._others if rank not in self.last or (not self.last[rank].closed and self._age(rank) > _LOST_SECONDS)]

    @property
    def has_every_dump(self) -> bool:
        """Whether every other rank that answers has its stacks on disk."""
        return all(state.closed or state.dumped for state in self.answering.values())

    def _age(self, rank: int) -> float:
        return time.monotonic() - self._changed[rank]

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.json"


class Aside:
    """Runs calls beside the caller, one at a time: one that never returns, as on a file system whose server is gone, holds up
    nothing but the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def run(self, call: Callable[[], T], *, seconds: float) -> T | None:
        """The result of `call`; None when there is none in time, the files of it fail, or an earlier call is still at it."""
        deadline = time.monotonic() + seconds
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return None
        results: list[T] = []
        errors: list[Exception] = []
        self._thread = threading.Thread(target=_attempt, args=(call, results, errors), daemon=True)
        self._thread.start()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        for error in errors:
            raise error
        return results[0] if results else None


def _attempt(call: Callable[[], T], results: list[T], errors: list[Exception]) -> None:
    try:
        results.append(call())
    except OSError:  # what cannot be written or read now may be later; the rank itself tells of a folder that is gone
        pass
    except Exception as error:
        errors.append(error)
