"""What to do after an attempt to train has failed: one pure function from what happened to restart, wait, shrink or give up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["worker", "start", "cluster"]
"""worker: a process that trained failed. start: the workers could not be started. cluster: Ray itself was lost."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One attempt that failed. `rank` is None where no worker is to blame; `reason` is a few words.

    `committed` is the step of the newest committed checkpoint then, 0 without one, and `reached` the last step in the logs.
    """

    kind: Kind
    reason: str
    rank: int | None = None
    committed: int = 0
    reached: int = 0
    trace: str | None = None

    def __str__(self) -> str:
        return f"{self.who} failed ({self.reason})" if self.kind == "worker" else self.reason

    @property
    def who(self) -> str:
        """The worker, or the workers where none of them is known to be the one."""
        return "the workers" if self.rank is None else f"the worker of rank {self.rank}"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the user allows. `num_workers` are wanted, `allowed_workers` are the numbers that will do, in rising order."""

    num_workers: int
    allowed_workers: tuple[int, ...]
    max_restarts: int = 3
    refill_steps: int = 200
    """A restart no longer counts once so many further steps are in committed checkpoints."""
    same_step_tries: int = 3
    """So many failures of the same rank for the same reason without a new checkpoint are a bug, not bad luck."""
    max_start_failures: int = 5
    first_delay_seconds: float = 5.0
    """Before the second restart without progress; the first one is made at once, each later one waits twice as long."""
    max_delay_seconds: float = 300.0
    settle_seconds: float = 10.0
    """How long resources may take to come back, as after the end of a worker, before fewer workers are made of what is there."""
    wait_seconds: float = 600.0
    """How long to wait for a cluster, or for enough of it."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a launch stands between two attempts.

    `failures` are all so far, the last one just now; `committed` is the newest committed step now; `num_workers` were used
    last; `capacity` is how many workers the cluster could start now, None where it does not answer; `waited_seconds` have
    passed since the last failure.
    """

    failures: Sequence[Failure]
    committed: int
    num_workers: int
    capacity: int | None
    waited_seconds: float


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Start `num_workers` again, as many as before or as are wanted, after a pause."""

    after_seconds: float
    num_workers: int


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """Go on with fewer workers than before, after a pause."""

    after_seconds: float
    num_workers: int


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Look again in a moment."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class GiveUp:
    """End the command; `reason` is what the user reads."""

    reason: str


Decision = Restart | Shrink | Wait | GiveUp


def decide(status: Status, policy: Policy) -> Decision:
    """What to do next. The same status and policy always give the same answer: nothing is drawn and no clock is read."""
    reason = _why_hopeless(status, policy)
    if reason is not None:
        return GiveUp(reason=reason)
    fitting = [n for n in policy.allowed_workers if status.capacity is not None and n <= status.capacity]
    if not fitting:
        return _wait(status, policy)
    num_workers = fitting[-1]
    after = max(0.0, restart_delay(status, policy) - status.waited_seconds)
    if num_workers >= status.num_workers:
        return Restart(after_seconds=after, num_workers=num_workers)
    if status.waited_seconds < policy.settle_seconds:
        return Wait(reason=_shortage(status, policy))
    return Shrink(after_seconds=after, num_workers=num_workers)


def restart_delay(status: Status, policy: Policy) -> float:
    """Seconds between the last failure and the next start: none after the first failure since the newest checkpoint."""
    since_progress = sum(failure.committed >= status.committed for failure in status.failures)
    if since_progress <= 1:
        return 0.0
    return float(min(policy.max_delay_seconds, policy.first_delay_seconds * 2 ** min(since_progress - 2, 32)))


def restarts_used(status: Status, policy: Policy) -> int:
    """How many failures count against the budget: those that fewer than `refill_steps` committed steps have followed."""
    return sum(f.kind != "start" and status.committed - f.committed < policy.refill_steps for f in status.failures)


def _why_hopeless(status: Status, policy: Policy) -> str | None:
    if not status.failures:
        return None
    last = status.failures[-1]
    tries = _same_again(status.failures)
    if last.kind == "worker" and tries >= policy.same_step_tries:
        return (
            f"{last.who} failed {tries} times in the same place, after step {last.committed}{_logged(last)}:"
            f" {last.reason}. More restarts would do the same; mend the cause, then the same command goes on from step {last.committed}."
        )
    starts = _trailing_starts(status.failures)
    if starts >= policy.max_start_failures:
        return (
            f"Ray could not start the workers, {starts} times: {last.reason}. See Ray's logs in /tmp/ray/session_latest/logs;"
            " the same command goes on from the newest checkpoint."
        )
    used = restarts_used(status, policy)
    if used > policy.max_restarts:
        after = f" after {policy.max_restarts} restart{'s' if policy.max_restarts > 1 else ''}" if policy.max_restarts else ""
        who = f"{last.who} failed" if last.kind == "worker" else "Ray was lost"
        return (
            f"{who}{after}, after step {last.committed}{_logged(last)}: {last.reason}. The same command goes on from the newest"
            f" checkpoint; --max-restarts allows more restarts within {policy.refill_steps} steps."
        )
    return None


def _same_again(failures: Sequence[Failure]) -> int:
    """How often the last failure has happened in a row, with nothing committed in between."""
    last = failures[-1]
    count = 0
    for failure in reversed(failures):
        if (failure.kind, failure.rank, failure.reason, failure.committed) != (last.kind, last.rank, last.reason, last.committed):
            break
        count += 1
    return count


def _trailing_starts(failures: Sequence[Failure]) -> int:
    count = 0
    for failure in reversed(failures):
        if failure.kind != "start":
            break
        count += 1
    return count


def _logged(failure: Failure) -> str:
    return f" (the last one logged is {failure.reached})" if failure.reached > failure.committed else ""


def _wait(status: Status, policy: Policy) -> Decision:
    shortage = _shortage(status, policy)
    if status.waited_seconds < policy.wait_seconds:
        return Wait(reason=shortage)
    return GiveUp(
        reason=f"{shortage}, for {status.waited_seconds:.0f} seconds now. The same command goes on from the newest checkpoint;"
        " --wait-for-cluster allows a longer wait, --min-workers fewer workers."
    )


def _shortage(status: Status, policy: Policy) -> str:
    if status.capacity is None:
        return "the Ray cluster does not answer"
    needed = policy.allowed_workers[0] if policy.allowed_workers[0] > status.capacity else policy.num_workers
    return f"the Ray cluster has room for {status.capacity} of the {needed} workers"
