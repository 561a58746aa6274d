"""A stop that is asked for through a file of the run directory, where no signal reaches the processes that train."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from vitscale.train.run_dir import replace_text

STOP_REQUEST = "stop_request.json"
"""Name of the file in the run directory."""

_SECONDS_BETWEEN_LOOKS = 1.0


def ask_to_stop(run_dir: Path, *, reason: str, launch: str | None = None) -> None:
    """Ask whoever trains in `run_dir` to finish its step, save and stop. `launch` is the id of the launch that is meant: a
    group of it that is about to start stops too, while others drop what was asked before they began. Raises `OSError`."""
    record = {"reason": reason, "launch": launch, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    replace_text(run_dir / STOP_REQUEST, json.dumps(record) + "\n")


def withdraw_request(run_dir: Path) -> None:
    """Forget what was asked, if anything was."""
    (run_dir / STOP_REQUEST).unlink(missing_ok=True)


class RequestFile:
    """Looks for a request, at most once a second by a clock that nobody sets. For rank 0, which holds the run directory.

    A request that was there before is dropped, unless it names this `launch`: it was meant for an earlier start, which may
    have died before it could honour it. `is_shut_out` tells whether another process holds the run directory by now: this
    run then stops at once, instead of at its next commit, which would be refused.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        launch: str | None = None,
        is_shut_out: Callable[[], bool] = lambda: False,
        seconds_between_looks: float = _SECONDS_BETWEEN_LOOKS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_dir = run_dir
        self._is_shut_out = is_shut_out
        self._interval = seconds_between_looks
        self._clock = clock
        self._next_look = clock()
        self._reason: str | None = None
        left_over = _read(run_dir)
        if left_over is not None and (launch is None or left_over.get("launch") != launch):
            withdraw_request(run_dir)

    @property
    def reason(self) -> str | None:
        """Why the run is to stop, once that was seen."""
        return self._reason

    def is_asked(self) -> bool:
        """Whether there is a request, or was one at an earlier call."""
        if self._reason is None and self._clock() >= self._next_look:
            self._look()
            self._next_look = self._clock() + self._interval
        return self._reason is not None

    def close(self) -> None:
        """The run stops, or has ended: what was asked of it is done with. What another holder is asked stays."""
        if self._reason is not None and not self._is_shut_out():
            withdraw_request(self._run_dir)

    def _look(self) -> None:
        found = _read(self._run_dir)
        if self._is_shut_out():
            self._reason = "another process group has taken over the run directory"
        elif found is not None:
            self._reason = str(found.get("reason") or "asked by a file in the run directory")


def _read(run_dir: Path) -> dict[str, object] | None:
    """The request; an empty one where the file does not say, None where there is none."""
    try:
        # Opening the folder first makes a network file system look again whether the file is there by now.
        folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        descriptor = os.open(STOP_REQUEST, os.O_RDONLY, dir_fd=folder)
    except OSError:
        return None
    finally:
        os.close(folder)
    try:
        with open(descriptor, "rb") as file:
            values = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
