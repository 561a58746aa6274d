"""A rank's side of its watchdog: starts the small process that watches it, and gives it what it needs to see."""

import contextlib
import ctypes
import faulthandler
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from vitscale.train.hang_stacks import DUMP_SIGNAL
from vitscale.train.heartbeat import Heartbeat, anonymous_file
from vitscale.train.watchdog_process import CLOSE

START_SECONDS = 1800.0
"""How long a rank may take for its first step."""

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from vitscale.train.watchdog_process import main; main(sys.argv[2])"
_CLOSE_SECONDS = 3.0
_PR_SET_PTRACER = 0x59616D61


class Watchdog:
    """Ends this process when its heartbeat stops for too long, with the stacks of its threads and an event on disk.

    Every rank starts one at the same point, with the same `attempt`, a name for this start of the run. Works in any thread:
    no Python signal handler is set, only faulthandler's for SIGUSR2. Raises `OSError` when the process cannot be started or
    the folders below `run_dir` cannot be made.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        *,
        run_dir: Path,
        rank: int,
        world_size: int,
        attempt: str,
        hang_seconds: float | Literal["auto"],
        start_seconds: float = START_SECONDS,
    ) -> None:
        for folder in ("heartbeats", "logs"):
            (run_dir / folder).mkdir(parents=True, exist_ok=True)
        self._stacks = anonymous_file("vitscale-stacks")
        faulthandler.register(DUMP_SIGNAL, file=self._stacks, all_threads=True)
        control, self._control = os.pipe()
        py_spy = _find_py_spy()
        task = {
            "pid": os.getpid(),
            "rank": rank,
            "world_size": world_size,
            "attempt": attempt,
            "run_dir": str(run_dir.absolute()),
            "heartbeat": heartbeat.fileno(),
            "stacks": self._stacks.fileno(),
            "control": control,
            "hang_seconds": None if hang_seconds == "auto" else hang_seconds,
            "start_seconds": start_seconds,
            "py_spy": py_spy,
        }
        self._process = subprocess.Popen(
            # Neither the environment's Python settings nor site-packages: they cost time and memory, and may run code.
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(_ROOT), json.dumps(task)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(heartbeat.fileno(), self._stacks.fileno(), control),
            # Out of reach of the signals that launchers and terminals send to the rank's process group.
            start_new_session=True,
        )
        os.close(control)
        if py_spy is not None:
            _allow_tracing(self._process.pid)

    @property
    def pid(self) -> int:
        """The watching process."""
        return self._process.pid

    @property
    def is_watching(self) -> bool:
        """Whether the watching process is at work."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the watch. May be called twice."""
        if self._control < 0:
            return
        with contextlib.suppress(BrokenPipeError):
            os.write(self._control, CLOSE)
        os.close(self._control)
        self._control = -1
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # Only now: the signal would end a process without a handler.
        faulthandler.unregister(DUMP_SIGNAL)
        self._stacks.close()


def _find_py_spy() -> str | None:
    """py-spy of this environment, or else on the path."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.is_file() else shutil.which("py-spy")


def _allow_tracing(pid: int) -> None:
    """Let a child of ours and its children read our memory where Yama allows only parents to; without Yama nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, pid, 0, 0, 0)
