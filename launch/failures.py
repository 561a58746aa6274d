"""What a failure among the workers means: the user's error, shown as it is, or a worker that died, restarted and recorded."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback

from vitscale.config import UserError

_TRACE_LINES = 40
# Where Ray keeps the error that another one wraps: what a worker raised, why a worker did not answer, what ended the
# controller, what a remote task or a trial raised; last Python's own.
_WRAPPED = ("_base_exc", "health_check_failure", "controller_failure", "cause", "__cause__")


@dataclass(frozen=True, kw_only=True)
class WorkerFailure:
    """Why the first of the workers failed, in a few words, and the end of its trace where it left one."""

    rank: int
    reason: str
    trace: str | None


class RestartLedger(UserCallback):
    """Runs in Ray's controller: ends the run at a user's error, and writes every restart to the console and events.jsonl."""

    def __init__(self, *, events: Path, max_restarts: int) -> None:
        self._events = events
        self._max_restarts = max_restarts
        self._num_failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, BaseException]) -> None:  # noqa: ARG002
        """Ray calls this when it sees that workers failed, before it decides about a restart.

        Raises the `UserError` among the failures: Ray does not retry what its controller's callbacks raise, and a wrong
        configuration or a damaged shard would be as wrong the next time.
        """
        for error in worker_exceptions.values():
            if (found := find_user_error(error)) is not None:
                raise found
        self._num_failures += 1
        if self._num_failures <= self._max_restarts:
            self._record(first_failure(worker_exceptions))

    def _record(self, failure: WorkerFailure) -> None:
        message = (
            f"the worker of rank {failure.rank} failed ({failure.reason}): restarting all workers from the newest checkpoint,"
            f" restart {self._num_failures} of at most {self._max_restarts}"
        )
        print(message, flush=True)
        record = {"time": time.time(), "event": "restart", "restart": self._num_failures, "rank": failure.rank, "message": message}
        # A failure before the run directory exists has no ledger yet.
        with contextlib.suppress(FileNotFoundError), open(self._events, "a", encoding="utf-8") as file:
            file.write(json.dumps(record | ({"trace": failure.trace} if failure.trace else {})) + "\n")


def training_error(error: BaseException, *, max_restarts: int) -> UserError:
    """What the user is told about an error of `TorchTrainer.fit`: the user's error inside, else that the workers failed."""
    found = find_user_error(error)
    if found is not None:
        return found
    worker_failures: Mapping[int, BaseException] | None = getattr(error, "worker_failures", None)
    if not worker_failures:
        return UserError(f"Ray could not run the workers: {_last_line(error)} (Ray's logs lie in /tmp/ray/session_latest/logs)")
    failure = first_failure(worker_failures)
    restarts = f" after {max_restarts} restart{'s' if max_restarts > 1 else ''}" if max_restarts else ""
    message = (
        f"the worker of rank {failure.rank} failed{restarts}: {failure.reason}. The same command goes on from the newest checkpoint;"
        " --max-restarts allows more restarts."
    )
    return UserError(f"{message}\n{failure.trace}" if failure.trace else message)


def find_user_error(error: BaseException) -> UserError | None:
    """The `UserError` inside the wrappers that Ray puts around what a worker, a controller or a trial raises."""
    # By module, since Ray also makes classes of its own that inherit from what a remote task raised.
    ours = UserError.__module__
    return next((found for found in _unwrap(error) if isinstance(found, UserError) and type(found).__module__ == ours), None)


def first_failure(worker_exceptions: Mapping[int, BaseException]) -> WorkerFailure:
    """The failure to blame: a process that died, or else an error of ours, before those who only lost the connection to it."""
    rank = min(worker_exceptions, key=lambda rank: (_is_consequence(worker_exceptions[rank]), rank))
    error = worker_exceptions[rank]
    if _process_died(error):
        return WorkerFailure(rank=rank, reason="its process died: killed, or out of memory", trace=None)
    trace = "\n".join(str(error).strip().splitlines()[-_TRACE_LINES:])
    return WorkerFailure(rank=rank, reason=_last_line(error), trace=trace)


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
