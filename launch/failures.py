"""What an error of Ray Train means: the user's error, shown as it is, or something that died and may be started again."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RaySystemError
from ray.train import UserCallback

from vitscale.config import CorruptionError, UserError

from .ledger import LaunchLedger
from .outcome import Failed, Refused, refused
from .supervise import Failure

_TRACE_LINES = 40
# What the driver gets in place of an answer when Ray's controller, its node or its head is gone.
_LOST = (RayActorError, RaySystemError, ConnectionError)
# Where Ray keeps the error that another one wraps: what a worker raised, why a worker did not answer, what ended the
# controller, what a remote task or a trial raised; last Python's own.
_WRAPPED = ("_base_exc", "health_check_failure", "controller_failure", "cause", "__cause__")


class DetectionLedger(UserCallback):
    """Runs in Ray's controller: records in events.jsonl when a failure was noticed, before the other workers are ended."""

    def __init__(self, *, events: Path) -> None:
        self._ledger = LaunchLedger(events)

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, BaseException]) -> None:  # noqa: ARG002
        """Ray calls this when it sees that workers failed. A user's error is told by the command."""
        errors = [find_user_error(error) for error in worker_exceptions.values()]
        corruption = next((error for error in errors if isinstance(error, CorruptionError)), None)
        if any(errors) and corruption is None:
            return
        found = first_failure(worker_exceptions) if corruption is None else _corrupted(corruption)
        message = f"{found.who} failed: {found.reason}"
        self._ledger.record("worker_failed", message, rank=found.rank, reason=found.reason, trace=found.trace)


def outcome_of(error: BaseException) -> Refused | Failed:
    """What an error of `TorchTrainer.fit` means: the user's error inside, else what failed."""
    found = find_user_error(error)
    if isinstance(found, CorruptionError):
        return Failed(failure=_corrupted(found))
    if found is not None:
        return refused(found)
    worker_failures: Mapping[int, BaseException] | None = getattr(error, "worker_failures", None)
    if worker_failures:
        return Failed(failure=first_failure(worker_failures))
    inner = getattr(error, "controller_failure", None) or error
    if any(isinstance(found, _LOST) for found in _unwrap(error)):
        return Failed(failure=Failure(kind="cluster", reason=f"Ray was lost, {type(inner).__name__}", trace=str(inner).strip() or None))
    return Failed(failure=Failure(kind="start", reason=_last_line(inner)))


def find_user_error(error: BaseException) -> UserError | None:
    """The `UserError` inside the wrappers that Ray puts around what a worker, a controller or a trial raises."""
    # By module, since Ray also makes classes of its own that inherit from what a remote task raised.
    ours = UserError.__module__
    return next((found for found in _unwrap(error) if isinstance(found, UserError) and type(found).__module__ == ours), None)


def first_failure(worker_exceptions: Mapping[int, BaseException]) -> Failure:
    """The failure to blame: a process that died, or else an error of ours, before those who only lost the connection to it."""
    rank = min(worker_exceptions, key=lambda rank: (_is_consequence(worker_exceptions[rank]), rank))
    error = worker_exceptions[rank]
    if _process_died(error):
        lost = "its machine left the cluster" if "node has died" in str(error) else "its process died: killed, or out of memory"
        return Failure(kind="worker", rank=rank, reason=lost)
    trace = "\n".join(str(error).strip().splitlines()[-_TRACE_LINES:])
    # Not the message of the network's, which names another port each time: failures are compared by their reason.
    reason = "it lost its connection to another worker" if _is_consequence(error) else _last_line(error)
    return Failure(kind="worker", rank=rank, reason=reason, trace=trace)


def _corrupted(error: CorruptionError) -> Failure:
    """Of a rank whose memory changed by itself: the newest checkpoint is from before, so another attempt may well succeed."""
    certain = error.ranks[0] if len(error.ranks) == 1 else None
    whose = "its memory" if certain is not None else f"the memory of one of the ranks {', '.join(map(str, error.ranks))}"
    return Failure(kind="worker", rank=certain, reason=f"{whose} changed by itself", trace=str(error))


def _process_died(error: BaseException) -> bool:
    return any(isinstance(found, RayActorError) for found in _unwrap(error))


def _is_consequence(error: BaseException) -> bool:
    """Whether this is what the survivors of a dead worker say: gloo and nccl complain about the connection."""
    return not _process_died(error) and any(word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer"))


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _unwrap(error: BaseException) -> Iterator[BaseException]:
    """The error and everything it wraps, outermost first."""
    waiting = [error]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inner = [getattr(current, name, None) for name in _WRAPPED]
        inner += list(getattr(current, "worker_failures", {}).values())
        waiting += [item for item in inner if isinstance(item, BaseException)]
