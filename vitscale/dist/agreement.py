"""Decisions and failures that all ranks must share: what only rank 0 may do, and errors that must end every rank alike."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vitscale.config.errors import (
    CheckpointError,
    ConfigError,
    CorruptionError,
    DataError,
    NonFiniteLossError,
    StopRequested,
    UsageError,
    UserError,
)
from vitscale.dist.collectives import broadcast_json, gather_json
from vitscale.dist.ranks import current_ranks

T = TypeVar("T")

_SHARED_ERRORS: dict[str, type[UserError]] = {
    error.__name__: error
    for error in (
        UserError,
        UsageError,
        ConfigError,
        DataError,
        CheckpointError,
        NonFiniteLossError,
        CorruptionError,
        StopRequested,
    )
}


def on_main(action: Callable[[], Any]) -> Any:
    """Run `action` on rank 0 and give every rank its plain JSON result. All ranks must call this.

    A `UserError` on rank 0 is raised on every rank, so that none is left waiting in a collective.
    """
    attempt = _attempt(action) if current_ranks().is_main else _Attempt()
    return _unwrap(broadcast_json(attempt.outcome), cause=attempt.error)


def on_every_rank(action: Callable[[], Any]) -> list[Any]:
    """Run `action` on every rank and give each the list of all plain JSON results. All ranks must call this.

    A `UserError` on any rank is raised on all: the lowest failing rank's.
    """
    attempt = _attempt(action)
    return [_unwrap(outcome, cause=attempt.error) for outcome in gather_json(attempt.outcome)]


def jointly(action: Callable[[], T]) -> T:
    """Run `action` on every rank and give each its own result, which may be anything. All ranks must call this.

    A `UserError` on any rank is raised on all: the lowest failing rank's.
    """
    results: list[T] = []
    on_every_rank(lambda: results.append(action()))
    return results[0]


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """What an action came to on this rank: plain JSON for the others, and the error itself, whose trace stays here."""

    outcome: dict[str, Any] = field(default_factory=dict)
    error: UserError | None = None


def _attempt(action: Callable[[], Any]) -> _Attempt:
    try:
        return _Attempt(outcome={"value": action()})
    except UserError as error:
        # Of a kind that only its own module knows, the nearest one that all share: it has the same exit code.
        shared = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _SHARED_ERRORS)
        return _Attempt(outcome={"error": shared, "message": str(error)}, error=error)


def _unwrap(outcome: dict[str, Any], *, cause: UserError | None) -> Any:
    if "error" not in outcome:
        return outcome["value"]
    error = _SHARED_ERRORS[outcome["error"]](outcome["message"])
    error.scope = "run"
    raise error from cause
