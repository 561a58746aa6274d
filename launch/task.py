"""TrainTask: everything that a worker must know of a run, as plain values."""

import dataclasses
import json
import sys
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """A run as it travels to the workers.

    `config` is the configuration as plain values, with its paths as they were written: they are relative to `folder`, the
    directory that the command was given in. `command` is that command, for the run's records. `launch` is an id of this
    start of the command, `attempt` counts the groups of workers that it has started. `rehearses_faults` lets workers do the
    faults that they are asked for. `debug` lets workers print the traces of errors that the command shows as a paragraph.
    """

    config: dict[str, Any]
    folder: str
    command: tuple[str, ...]
    launch: str
    attempt: int = 0
    allow_change: tuple[str, ...] = ()
    stop_at_step: int | None = None
    rehearses_faults: bool = False
    debug: bool = False

    def to_json(self) -> str:
        """The task as JSON text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "TrainTask":
        """Read what `to_json` wrote."""
        values = json.loads(text)
        values |= {"command": tuple(values["command"]), "allow_change": tuple(values["allow_change"])}
        return cls(**values)


def make_task(
    config: RunConfig,
    *,
    allow_change: Collection[str] = (),
    stop_at_step: int | None = None,
    rehearses_faults: bool = False,
    debug: bool = False,
) -> TrainTask:
    """The task of training `config` from the current directory."""
    return TrainTask(
        config=config.model_dump(mode="json"),
        folder=str(Path.cwd()),
        command=tuple(sys.argv),
        launch=uuid.uuid4().hex,
        allow_change=tuple(allow_change),
        stop_at_step=stop_at_step,
        rehearses_faults=rehearses_faults,
        debug=debug,
    )
