"""Runs that are killed, fail, stop and are started again, on a clock of their own: their events, and what the time really went into."""

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vitscale.train.goodput import Cause, TimeLedger

REPORT_EVERY, SAVE_EVERY, EVALUATE_EVERY = 5, 20, 50


class Ended(Exception):
    """The moment has come at which this attempt ends."""


@dataclass(kw_only=True)
class World:
    """Time as it passes, and a wall clock that somebody may set."""

    now: float = 1000.0
    clock_error: float = 1.8e9
    ends_at: float = float("inf")

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.clock_error


@dataclass(kw_only=True)
class History:
    """`records` are what events.jsonl would hold; `truth` the seconds by cause, kept by other means than the ledger's."""

    world: World
    random: random.Random
    num_steps: int
    records: list[dict[str, Any]] = field(default_factory=list)
    truth: Counter[str] = field(default_factory=Counter)
    saved_step: int = 0
    _by_step: dict[int, Counter[str]] = field(default_factory=dict)
    _unrecorded: Counter[str] = field(default_factory=Counter)

    def event(self, kind: str, **details: object) -> None:
        self.records.append({"time": self.world.wall(), "event": kind, **details})

    def attempt(self, *, seconds: float, way: str, after_failure: bool) -> str:
        """One attempt from the last save, which after `seconds` is `killed`, `fails` or is asked to stop; gives how it ended."""
        ledger = TimeLedger(clock=self.world.monotonic, wall_clock=self.world.wall)
        begin, step = self.world.now, self.saved_step
        first = step + 1
        self.world.ends_at = begin + 12 + seconds
        self._redo(step)
        self.world.now += self.random.uniform(2, 12)
        self.truth["restart" if after_failure else "start_up"] += self.world.now - begin
        ledger.become("step")
        self._take(ledger, step)
        try:
            for step in range(first, self.num_steps + 1):
                self._step(ledger, step, is_first=step == first)
                stopping = way == "stopped" and self.world.now >= self.world.ends_at
                save = step % SAVE_EVERY == 0 or step == self.num_steps or stopping
                if save or step % REPORT_EVERY == 0:
                    self._take(ledger, step)
                    self._spend(ledger, "report", self.random.uniform(0, 0.05), way)
                if save:
                    self._spend(ledger, "checkpoint", self.random.uniform(0.1, 3), way)
                    self.saved_step = step
                    self.event("checkpoint", step=step)
                if stopping:
                    return self._end(ledger, step, "ended", exit_code=75)
                if step % EVALUATE_EVERY == 0:
                    self._spend(ledger, "evaluation", self.random.uniform(1, 8), way)
        except Ended:
            if way == "killed":
                self._lose_unrecorded()
                return "died"
            if self._in_step:  # nothing came of it; a save or an evaluation that was under way counts as such
                self.truth["lost_work"] += sum(self._by_step.pop(step).values())
            return self._end(ledger, step - self._in_step, "ended", exit_code=1)
        return self._end(ledger, self.num_steps, "finished")

    def between(self, seconds: float, cause: str) -> None:
        """Time in which no attempt runs."""
        self.world.now += seconds
        self.truth[cause] += seconds

    def totals(self) -> Counter[str]:
        """The truth, with the steps that stayed."""
        kept: Counter[str] = Counter()
        for causes in self._by_step.values():
            kept.update(causes)
        return self.truth + kept

    def _step(self, ledger: TimeLedger, step: int, *, is_first: bool) -> None:
        self._in_step, self._by_step[step] = True, Counter()
        with ledger.spent("data_wait"):
            self._pass(self.random.choice((0.0, 0.01, 0.5)), "data_wait", step)
        if is_first:
            with ledger.spent("compile"):
                self._pass(self.random.uniform(1, 9), "compile", step)
        else:
            self._pass(self.random.uniform(0.2, 0.6), "step", step)
        ledger.step_done()
        self._in_step = False

    def _pass(self, seconds: float, cause: Cause, step: int) -> None:
        begin = self.world.now
        try:
            self._advance(seconds)
        finally:
            self._by_step[step][cause] += self.world.now - begin
            self._unrecorded[f"{step}/{cause}"] += self.world.now - begin

    def _spend(self, ledger: TimeLedger, cause: Cause, seconds: float, way: str) -> None:
        begin = self.world.now
        with ledger.spent(cause):
            try:
                if way == "stopped":
                    self.world.now += seconds
                else:
                    self._advance(seconds)
            finally:
                self.truth[cause] += self.world.now - begin
                self._unrecorded[f"-/{cause}"] += self.world.now - begin

    def _advance(self, seconds: float) -> None:
        if self.world.now + seconds >= self.world.ends_at and not self._may_finish:
            self.world.now = max(self.world.now, self.world.ends_at)
            raise Ended
        self.world.now += seconds

    _may_finish = False
    _in_step = False

    def _take(self, ledger: TimeLedger, step: int) -> None:
        self.records.append({"time": self.world.wall(), **ledger.take(step=step).record()})
        self._unrecorded.clear()

    def _end(self, ledger: TimeLedger, step: int, kind: str, **details: object) -> str:
        self.event(kind, step=step, **details)
        ledger.become("stop")
        self.between(self.random.uniform(0, 1), "stop")
        self._take(ledger, step)
        return {"finished": "finished", 75: "stopped", 1: "failed"}[details.get("exit_code", kind)]  # type: ignore[index]

    def _lose_unrecorded(self) -> None:
        """By definition all that a killed process did since its last slice is lost work."""
        for name, seconds in self._unrecorded.items():
            step, cause = name.split("/")
            (self.truth if step == "-" else self._by_step[int(step)])[cause] -= seconds
            self.truth["lost_work"] += seconds
        self._unrecorded.clear()

    def _redo(self, step: int) -> None:
        """The steps after the one that was saved are done again."""
        for redone in [number for number in self._by_step if number > step]:
            self.truth["lost_work"] += sum(self._by_step.pop(redone).values())


def simulate(seed: int, *, num_attempts: int, is_supervised: bool = True, clock_jumps: float = 0.0) -> History:
    """A history of up to `num_attempts`; between them the wall clock is set by up to `clock_jumps` seconds."""
    rng = random.Random(seed)
    history = History(world=World(), random=rng, num_steps=rng.choice((200, 2000)))
    outcome = "stopped"
    for number in range(num_attempts):
        way = rng.choice(("killed", "killed", "fails", "stopped"))
        history._may_finish = way == "stopped" or number == num_attempts - 1
        after_failure = number > 0 and outcome in ("died", "failed")
        outcome = history.attempt(seconds=rng.uniform(5, 400), way=way, after_failure=after_failure)
        if outcome == "finished" or number == num_attempts - 1:
            break
        if outcome == "stopped":
            history.between(rng.uniform(0, 5000), "stopped")
        else:
            _recover(history, outcome=outcome, is_supervised=is_supervised)
        history.world.clock_error += rng.uniform(-clock_jumps, clock_jumps)
    return history


def _recover(history: History, *, outcome: str, is_supervised: bool) -> None:
    rng = history.random
    history.between(rng.uniform(0, 30), "lost_work" if outcome == "died" and is_supervised else "restart")
    if not is_supervised:
        return
    if rng.random() < 0.3:
        history.event("wait", seconds=0.0, message="waiting")
        waited = rng.uniform(1, 200)
        history.between(waited, "waiting_for_resources")
        history.event("wait", seconds=waited, message="waiting")
        history.between(rng.uniform(1, 50), "waiting_for_resources")
    history.event("restart", step=0, reason="killed", message="restarting")
    history.between(rng.uniform(0, 20), "restart")
