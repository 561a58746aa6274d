"""Runs a Python script in several gloo processes on this machine and collects one JSON value from each."""

import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from vitscale.data.processes import IGNORED_SIGNALS

ROOT = Path(__file__).resolve().parents[1]


def run_ranks(script: Path, *args: object, num_ranks: int = 2, timeout_s: float = 240.0) -> list[Any]:
    """Run `python script args...` as `num_ranks` ranks with torchrun's environment and one thread each.

    The ranks are forks of a process that has done the imports. Returns, by rank, the JSON on the last line of each rank's
    standard output (None if it printed nothing). When a rank fails or time is up, all are killed and `AssertionError` shows
    the ends of what they wrote.
    """
    arguments = [str(script), *(str(arg) for arg in args)]
    context = warm_context()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        processes: list[BaseProcess] = []
        for rank, environment in enumerate(rank_environments(num_ranks)):
            outputs = [str(_path(folder, rank, name)) for name in ("out", "err")]
            process = context.Process(target=_run_script, args=(arguments, environment, outputs))
            process.start()
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


def rank_environments(num_ranks: int) -> list[dict[str, str]]:
    """This process's environment with torchrun's variables, by rank."""
    common = {
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    return [{**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]


def warm_context() -> multiprocessing.context.ForkServerContext:
    """Starts processes as forks of one that has imported everything: that takes five seconds, most tests' ranks run for one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm_imports"])
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return context


def become(environment: Mapping[str, str], *, outputs: Sequence[str]) -> None:
    """Make this process one of its own session, with that environment, writing to files: standard output, then standard error."""
    os.setsid()  # so that a signal to the test's group does not reach it, and its own children die with it
    for number in IGNORED_SIGNALS:  # where the server was started for loader processes, it ignores them
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for descriptor, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)


def _run_script(arguments: list[str], environment: dict[str, str], outputs: list[str]) -> None:
    become(environment, outputs=outputs)
    sys.argv[:] = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")


def _wait(processes: list[BaseProcess], *, deadline: float) -> str | None:
    """What went wrong, or None when every rank ended with 0."""
    while True:
        codes = [process.exitcode for process in processes]
        for rank, code in enumerate(codes):
            if code not in (None, 0):
                return f"rank {rank} ended with {code}"
        if all(code == 0 for code in codes):
            return None
        if time.monotonic() > deadline:
            return "time is up"
        time.sleep(0.05)


def _kill(process: BaseProcess) -> None:
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # where it had no group of its own yet
    process.join()


def _path(folder: str, rank: int, name: str) -> Path:
    return Path(folder) / f"{rank}.{name}"


def _tail(folder: str, rank: int) -> str:
    texts = [_path(folder, rank, name).read_text()[-3000:] for name in ("out", "err")]
    return f"--- rank {rank}\n" + "\n".join(texts)


def _last_json(text: str) -> Any:
    lines = text.strip().splitlines()
    return json.loads(lines[-1]) if lines else None
