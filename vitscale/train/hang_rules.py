"""When a rank counts as hung, and which of several hung ranks is to blame: rules on values, without files or clocks."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from vitscale.train.heartbeat import Signs

# Imported by the watchdog's own small process as well: nothing but the standard library and the heartbeat.

AUTO_SECONDS = 20.0
"""The least that `auto` waits."""
AUTO_MULTIPLE = 8.0
"""How many times the longest silence so far `auto` waits."""
STORAGE_SECONDS = 300.0
"""The least that `auto` waits where storage sets the pace, in saves, evaluations and for a rank that sleeps while it waits for
data, and where all of a rank's state is read, to compare the ranks. A store that does not answer is given up after four minutes."""
SUSPENDED_SECONDS = 10.0
"""A look that comes so late shows that the watching process was stopped as well."""

_ON_PURPOSE = "To stand still on purpose, as in a debugger, set watch.hang_seconds=null"

_RARE_PHASES = frozenset({"compare", "save", "evaluate", "end"})


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What the operating system says of a rank's process: stopped by a signal, held by a debugger, asleep since the last sign."""

    stopped: bool = False
    traced: bool = False
    idle: bool = False


class SilenceClock:
    """How long a rank has shown no sign of life, and how long is too long.

    Counts the time between looks and so depends on no clock that the rank reads. `hang_seconds` None means auto: eight times
    the longest silence that this phase had so far, at least 20 seconds. Until the first step is done, and in the phase
    "start", a rank has `start_seconds`; with auto also in the first comparison, save, evaluation and end.
    """

    def __init__(self, signs: Signs, *, hang_seconds: float | None, start_seconds: float) -> None:
        self._signs = signs
        self._hang_seconds = hang_seconds
        self._start_seconds = start_seconds
        self._longest: dict[str, float] = {}
        self._phases_done: set[str] = set()
        self._is_excused = False
        self.seconds = 0.0

    @property
    def signs(self) -> Signs:
        """What the rank showed last."""
        return self._signs

    @property
    def shortest_limit(self) -> float:
        """Below this many seconds of silence a rank is not hung in any condition."""
        if self._hang_seconds is not None:
            return self._hang_seconds
        return max(AUTO_SECONDS, AUTO_MULTIPLE * self._longest.get(self._signs.phase, 0.0))

    def look(self, signs: Signs, *, elapsed: float) -> None:
        """Take in what the rank shows `elapsed` seconds after the last look."""
        if signs != self._signs:
            if self._signs.steps_done:
                self._learn(signs)
            self._signs, self.seconds, self._is_excused = signs, 0.0, False
        elif elapsed > SUSPENDED_SECONDS:
            self.restart()
        else:
            self.seconds += elapsed

    def restart(self) -> None:
        """Count from now on: the silence so far has an explanation that says nothing about the rank."""
        self.seconds = 0.0
        self._is_excused = True

    def excuse(self) -> None:
        """The silence is that of a rank which waits for another one, and no measure of what this phase takes."""
        self._is_excused = True

    def limit(self, condition: Condition) -> float:
        """The seconds of silence after which the rank is hung, as things are."""
        phase, shortest = self._signs.phase, self.shortest_limit
        if condition.stopped:
            return shortest
        if phase == "start" or not self._signs.steps_done:
            return max(shortest, self._start_seconds)
        if self._hang_seconds is not None:
            return shortest
        if phase in _RARE_PHASES and phase not in self._phases_done:
            return max(shortest, self._start_seconds)
        if phase in _RARE_PHASES or (phase == "data" and condition.idle):
            return max(shortest, STORAGE_SECONDS)
        return shortest

    def _learn(self, signs: Signs) -> None:
        phase = self._signs.phase
        if not self._is_excused:
            self._longest[phase] = max(self._longest.get(phase, 0.0), self.seconds)
        if signs.phase != phase:
            self._phases_done.add(phase)


@dataclass(frozen=True, kw_only=True)
class RankState:
    """What one rank's watchdog publishes for the others. `attempt` tells starts of the same run apart; `alarm` calls the others
    to write their stacks too, and `dumped` says that this has been done."""

    attempt: str
    rank: int
    host: str
    pid: int
    published: int = 0
    moves: int = 0
    phase: str = "start"
    step: int = 0
    collectives: int = 0
    in_collective: bool = False
    silent_seconds: float = 0.0
    limit_seconds: float = 0.0
    stopped: bool = False
    alarm: bool = False
    dumped: bool = False
    closed: bool = False

    def showing(self, signs: Signs, *, silent_seconds: float, limit_seconds: float, stopped: bool) -> "RankState":
        """The next publication."""
        return replace(
            self,
            published=self.published + 1,
            moves=signs.moves,
            phase=signs.phase,
            step=signs.step,
            collectives=signs.collectives,
            in_collective=signs.in_collective,
            silent_seconds=round(silent_seconds, 2),
            limit_seconds=round(limit_seconds, 2),
            stopped=stopped,
        )

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RankState":
        """The inverse. Raises `ValueError` for a line that was half written, or by another version."""
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"no state of a rank: {error}") from None

    @property
    def position(self) -> tuple[int, int, bool]:
        """Grows as a rank goes on. At the same collective, whoever has not entered it is behind those who wait in it."""
        return (self.moves, self.collectives, self.in_collective)

    @property
    def is_in_time(self) -> bool:
        """Whether its own watchdog sees nothing wrong with it."""
        return not self.stopped and self.silent_seconds < self.limit_seconds

    @property
    def place(self) -> str:
        """Where it is, in words."""
        place = f"phase {self.phase} after step {self.step}"
        return f"{place}, waiting in a collective" if self.in_collective else place


def ranks_waited_for(mine: RankState, others: Iterable[RankState]) -> list[int]:
    """Ranks which are no further than this one and still at work: to wait for them is no hang."""
    return [other.rank for other in others if not other.closed and other.position <= mine.position and other.is_in_time]


@dataclass(frozen=True, kw_only=True)
class Blame:
    """The ranks to blame for a hang; not `certain` when all ranks look alike, and all are listed."""

    ranks: tuple[int, ...]
    certain: bool


def find_culprits(states: Mapping[int, RankState], *, lost: Sequence[int] = ()) -> Blame:
    """The ranks that the others wait for: those whose watchdog is `lost`, those stopped by a signal, else those furthest behind.

    `states` holds every rank that answers.
    """
    stopped = [rank for rank, state in states.items() if state.stopped]
    if lost or stopped:
        return Blame(ranks=tuple(sorted([*lost, *stopped])), certain=True)
    running = {rank: state for rank, state in states.items() if not state.closed}
    furthest_behind = min(state.position for state in running.values())
    ranks = tuple(sorted(rank for rank, state in running.items() if state.position == furthest_behind))
    return Blame(ranks=ranks, certain=len(ranks) < len(running) or len(running) == 1)


def ranks_to_tell_of(rank: int, *, blame: Blame, answering: Iterable[int]) -> tuple[int, ...]:
    """Whose hang the watchdog of `rank` writes to the ledger, so that each is told once: its own, and the lowest rank that
    answers those of ranks whose watchdog cannot. A hang without a certain culprit is told by the lowest rank for all."""
    answers = sorted(answering)
    if not blame.certain:
        return blame.ranks if rank == answers[0] else ()
    told = {rank} & set(blame.ranks)
    if rank == answers[0]:
        told |= set(blame.ranks) - set(answers)
    return tuple(sorted(told))


def hang_message(culprit: RankState, *, states: Mapping[int, RankState], blame: Blame) -> str:
    """What the user reads in the ledger."""
    waiting = [f"rank {rank} in {state.place}" for rank, state in sorted(states.items()) if rank not in blame.ranks and not state.closed]
    if not blame.certain:
        named = ", ".join(str(rank) for rank in blame.ranks)
        who = f"ranks {named} have shown no progress for {culprit.silent_seconds:.0f} s, all in {culprit.place}: which of them is to blame"
        return f"{who} cannot be told from here; their processes were killed. {_ON_PURPOSE}"
    why = ", stopped by a signal" if culprit.stopped else ""
    message = (
        f"rank {culprit.rank} (process {culprit.pid} on {culprit.host}) has shown no progress for {culprit.silent_seconds:.0f} s"
        f" in {culprit.place}{why}; its process was killed. {_ON_PURPOSE}"
    )
    shown = waiting[:4] + ([f"{len(waiting) - 4} more"] if len(waiting) > 4 else [])
    return f"{message}. Others waited: {', '.join(shown)}" if shown else message


def lost_message(rank: int, *, last: RankState | None) -> str:
    """What the user reads of a rank whose watchdog no longer answers."""
    where = f"process {last.pid} on {last.host}, last seen in {last.place}" if last is not None else "never seen in this attempt"
    return f"rank {rank} ({where}) gives no sign of life, nor does its watchdog: its machine or the shared folder is out of reach"
