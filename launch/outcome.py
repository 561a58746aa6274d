"""How an attempt to train ended, as a value that travels between processes as JSON."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from vitscale import config
from vitscale.config import UserError

from .supervise import Failure


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The run is at its end. `values`: what `train_worker` returns."""

    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """Somebody asked for it, and everything is saved."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The user's error, as wrong at the next attempt as at this one: its class of `vitscale.config` by name, and its message."""

    error: str
    message: str

    def as_error(self) -> UserError:
        """The error itself."""
        error: UserError = getattr(config, self.error)(self.message)
        return error


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Something died; another attempt may succeed."""

    failure: Failure


Outcome = Finished | Stopped | Refused | Failed


def refused(error: UserError) -> Refused:
    """The outcome that is this error. Of a class that only its own module knows, the nearest one that all know."""
    name = next(kind.__name__ for kind in type(error).__mro__ if getattr(config, kind.__name__, None) is kind)
    return Refused(error=name, message=str(error))


def outcome_to_json(outcome: Outcome) -> str:
    """One line of JSON."""
    return json.dumps({"outcome": type(outcome).__name__} | dataclasses.asdict(outcome))


def outcome_from_json(text: str) -> Outcome:
    """Read what `outcome_to_json` wrote."""
    values = json.loads(text)
    name = values.pop("outcome")
    if name == Failed.__name__:
        return Failed(failure=Failure(**values["failure"]))
    kinds: dict[str, type[Finished] | type[Stopped] | type[Refused]] = {kind.__name__: kind for kind in (Finished, Stopped, Refused)}
    return kinds[name](**values)
