"""One launch of a run: attempts to train, one after the other, until one of them finishes, stops or cannot be repeated."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from vitscale.config import StopRequested, UserError
from vitscale.train.progress import Progress
from vitscale.train.stop_request import ask_to_stop, withdraw_request

from .ledger import LaunchLedger
from .outcome import Failed, Finished, Outcome, Stopped
from .stop_signals import StopSignals
from .supervise import Failure, GiveUp, Policy, Restart, Shrink, Status, Wait, decide, restarts_used

_SECONDS_BETWEEN_LOOKS = 0.5
# What workers that were just ended had reserved comes back a moment later: that is no wait to speak of.
_SECONDS_UNTIL_TOLD = 3.0
_SECONDS_BETWEEN_MESSAGES = 60.0


class Attempts(Protocol):
    """Where attempts are made: a Ray cluster, or what stands for it in a test."""

    def capacity(self) -> int | None:
        """How many workers could be started now; None where the cluster does not answer."""

    def run(self, *, attempt: int, num_workers: int, poll: Callable[[], None]) -> Outcome:
        """Train with so many workers until they end. Calls `poll` a few times in a second where it can."""


@dataclass(kw_only=True)
class Supervisor:
    """Makes attempts until the run is at its end. `launch` is the id by which workers know their launch."""

    attempts: Attempts
    policy: Policy
    run_dir: Path
    launch: str
    ledger: LaunchLedger
    progress: Callable[[], Progress]
    stop: StopSignals
    clock: Callable[[], float] = time.monotonic
    _failures: list[Failure] = field(default_factory=list)
    _has_asked: bool = False

    def train(self, *, num_workers: int) -> dict[str, Any]:
        """Begin with `num_workers`. Returns what the workers' rank 0 does; raises the `UserError` that ended the run."""
        attempt = 0
        try:
            while True:
                self._check_stop()
                outcome = self.attempts.run(attempt=attempt, num_workers=num_workers, poll=self._pass_on_stop)
                if not isinstance(outcome, Failed):
                    return _end(outcome)
                self._note(outcome.failure)
                num_workers = self._prepare_next(num_workers)
                attempt += 1
        finally:
            if self._has_asked:
                with contextlib.suppress(OSError):
                    withdraw_request(self.run_dir)

    def _note(self, failure: Failure) -> None:
        now = self.progress()
        self._failures.append(replace(failure, committed=now.committed, reached=now.reached))

    def _prepare_next(self, num_workers: int) -> int:
        """After a failure: wait as long as is decided; returns the number of workers of the next attempt."""
        began = self.clock()
        told: tuple[str, float] | None = None
        while True:
            self._check_stop()
            now = self.clock()
            status = Status(
                failures=self._failures,
                committed=self.progress().committed,
                num_workers=num_workers,
                capacity=self.attempts.capacity(),
                waited_seconds=now - began,
            )
            decision = decide(status, self.policy)
            match decision:
                case GiveUp():
                    self._give_up(decision)
                case Wait():
                    is_news = told is None or decision.reason != told[0] or now - told[1] >= _SECONDS_BETWEEN_MESSAGES
                    if is_news and now - began >= _SECONDS_UNTIL_TOLD:
                        self._tell_wait(decision, seconds=now - began)
                        told = decision.reason, now
                    self.stop.wait(_SECONDS_BETWEEN_LOOKS)
                case Restart() | Shrink():
                    self._tell_start(decision, status=status)
                    self.stop.wait(decision.after_seconds)
                    return decision.num_workers

    def _give_up(self, decision: GiveUp) -> None:
        last = self._failures[-1]
        self.ledger.record("gave_up", decision.reason, rank=last.rank, reason=last.reason, step=last.committed)
        raise UserError(f"{decision.reason}\n{last.trace}" if last.trace else decision.reason)

    def _tell_wait(self, decision: Wait, *, seconds: float) -> None:
        message = f"{decision.reason}: waiting, {seconds:.0f} of at most {self.policy.wait_seconds:.0f} seconds so far"
        last = self._failures[-1]
        self.ledger.event("wait", message, rank=last.rank, reason=decision.reason, seconds=round(seconds, 3))

    def _tell_start(self, decision: Restart | Shrink, *, status: Status) -> None:
        last = self._failures[-1]
        used = max(1, restarts_used(status, self.policy))
        pause = f" in {decision.after_seconds:.0f} seconds" if decision.after_seconds else ""
        number = f"all {decision.num_workers}" if decision.num_workers == self.policy.num_workers else f"{decision.num_workers}"
        self.ledger.event(
            "shrink" if isinstance(decision, Shrink) else "restart",
            f"{last}: restarting {number} workers from the newest checkpoint (step {status.committed}){pause}, restart {used} of at most"
            f" {self.policy.max_restarts} within {self.policy.refill_steps} steps",
            rank=last.rank,
            reason=last.reason,
            seconds=decision.after_seconds,
            step=status.committed,
            restart=used,
            num_workers=decision.num_workers,
        )

    def _pass_on_stop(self) -> None:
        """While workers train: let them know, once, that they are to stop."""
        if self.stop.reason is None or self._has_asked:
            return
        self._has_asked = True
        message = f"{self.stop.reason}: the run finishes its step, saves and stops; a second signal stops it at once"
        self.ledger.event("stop_asked", message, reason=self.stop.reason)
        try:
            ask_to_stop(self.run_dir, reason=f"{self.stop.reason} to the command that started the workers", launch=self.launch)
        except OSError as error:
            print(f"{error.filename}: the request to stop cannot be written: {error.strerror}", flush=True)

    def _check_stop(self) -> None:
        """Between attempts nothing is at work that could lose anything."""
        if self.stop.reason is None:
            return
        step = self.progress().committed
        where = f"the newest checkpoint is that of step {step}" if step else "there is no checkpoint yet"
        why = f" ({self._failures[-1]})" if self._failures else ""
        raise StopRequested(
            f"{self.run_dir}: stopped on request while nothing was training{why}; {where}. The same command goes on from there."
        )


def _end(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Finished):
        return outcome.values
    if isinstance(outcome, Stopped):
        raise StopRequested(outcome.message)
    assert not isinstance(outcome, Failed)
    raise outcome.as_error()
