"""Decisions and failures that all ranks must share: what only rank 0 may do, and errors that must end every rank alike."""

from collections.abc import Callable
from typing import Any

from vitscale.config.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteLossError,
    StopRequested,
    UsageError,
    UserError,
)
from vitscale.dist.collectives import broadcast_json, gather_json
from vitscale.dist.ranks import current_ranks

_SHARED_ERRORS: dict[str, type[UserError]] = {
    error.__name__: error for error in (UsageError, ConfigError, DataError, CheckpointError, NonFiniteLossError, StopRequested)
}


def on_main(action: Callable[[], Any]) -> Any:
    """Run `action` on rank 0 and give every rank its plain JSON result. All ranks must call this.

    A `UserError` on rank 0 is raised on every rank, so that none is left waiting in a collective.
    """
    outcome: dict[str, Any] | None = None
    if current_ranks().is_main:
        outcome = _attempt(action)
    return _unwrap(broadcast_json(outcome))


def on_every_rank(action: Callable[[], Any]) -> list[Any]:
    """Run `action` on every rank and give each the list of all plain JSON results. All ranks must call this.

    A `UserError` on any rank is raised on all: the lowest failing rank's.
    """
    outcomes = gather_json(_attempt(action))
    return [_unwrap(outcome) for outcome in outcomes]


def _attempt(action: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": action()}
    except UserError as error:
        return {"error": type(error).__name__, "message": str(error)}


def _unwrap(outcome: dict[str, Any]) -> Any:
    if "error" in outcome:
        raise _SHARED_ERRORS[outcome["error"]](outcome["message"])
    return outcome["value"]
