"""Runs a Python script in several gloo processes on this machine and collects one JSON value from each."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run_ranks(script: Path, *args: object, num_ranks: int = 2, timeout_s: float = 240.0, env: Mapping[str, str] | None = None) -> list[Any]:
    """Run `python script args...` as `num_ranks` ranks with torchrun's environment and one thread each.

    Returns, by rank, the JSON on the last line of each rank's standard output (None if it printed nothing). When a rank
    fails or time is up, all are killed and `AssertionError` shows the ends of what they wrote.
    """
    common = _environment(num_ranks) | dict(env or {})
    command = [sys.executable, str(script), *(str(arg) for arg in args)]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        processes = []
        for rank in range(num_ranks):
            streams = [stack.enter_context(open(_path(folder, rank, name), "w")) for name in ("out", "err")]
            ranked = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # A session of its own, so that a rank's own children die with it.
            process = subprocess.Popen(command, stdout=streams[0], stderr=streams[1], env=ranked, cwd=ROOT, start_new_session=True)
            stack.callback(_kill, process)
            processes.append(process)
        problem = _wait(processes, deadline=time.monotonic() + timeout_s)
        assert problem is None, "\n".join([problem or "", *(_tail(folder, rank) for rank in range(num_ranks))])
        return [_last_json(_path(folder, rank, "out").read_text()) for rank in range(num_ranks)]


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(num_ranks: int) -> dict[str, str]:
    fixed = {
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    return {**os.environ, **fixed}


def _wait(processes: list[subprocess.Popen[bytes]], *, deadline: float) -> str | None:
    """What went wrong, or None when every rank ended with 0."""
    while True:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code not in (None, 0):
                return f"rank {rank} ended with {code}"
        if all(code == 0 for code in codes):
            return None
        if time.monotonic() > deadline:
            return "time is up"
        time.sleep(0.05)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _path(folder: str, rank: int, name: str) -> Path:
    return Path(folder) / f"{rank}.{name}"


def _tail(folder: str, rank: int) -> str:
    texts = [_path(folder, rank, name).read_text()[-3000:] for name in ("out", "err")]
    return f"--- rank {rank}\n" + "\n".join(texts)


def _last_json(text: str) -> Any:
    lines = text.strip().splitlines()
    return json.loads(lines[-1]) if lines else None
