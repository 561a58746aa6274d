"""`vitscale train` on the tiny run as two processes that a test may signal and kill, forked from one that has done the imports."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.launcher import ROOT, free_port
from tests.train.tiny_run import tiny_values
from vitscale.config import dump_yaml

PATIENCE = 240.0


def write_tiny(root: Path) -> Path:
    """The tiny run's YAML file below `root`."""
    path = root / "tiny.yaml"
    path.write_text(dump_yaml(tiny_values(root)))
    return path


class RankProcesses:
    """One attempt of the command; what its ranks write goes to files below `root`. To be used with `with`."""

    def __init__(self, root: Path, *overrides: str, num_ranks: int = 2) -> None:
        self._outputs = [root / f"output-{rank}.txt" for rank in range(num_ranks)]
        config, port, context = str(write_tiny(root)), free_port(), _fork_server()
        self.processes: list[BaseProcess] = []
        for rank, path in enumerate(self._outputs):
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "MASTER_PORT": port}
            shared = {name: str(value) for name, value in variables.items()} | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
            process = context.Process(target=_train, args=(shared, str(path), ["train", config, *overrides]), daemon=True)
            process.start()
            self.processes.append(process)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for it, while any rank lives."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert any(process.is_alive() for process in self.processes), self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.01)

    def send(self, number: signal.Signals, *, rank: int) -> None:
        """A signal to one rank."""
        pid = self.processes[rank].pid
        assert pid is not None
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def wait(self) -> list[int | None]:
        """Exit codes by rank, once all have ended."""
        deadline = time.monotonic() + PATIENCE
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            assert process.exitcode is not None, self.text()
        return [process.exitcode for process in self.processes]

    def __enter__(self) -> "RankProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def text(self) -> str:
        """What they wrote last."""
        texts = [path.read_text()[-3000:] if path.exists() else "" for path in self._outputs]
        return "\n".join(f"--- rank {rank}\n{text}" for rank, text in enumerate(texts))


def reached_step(run_dir: Path) -> int:
    """The last step in metrics.jsonl, 0 where there is none."""
    with suppress(OSError, ValueError, IndexError):
        return int(json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    return 0


def _fork_server() -> multiprocessing.context.ForkServerContext:
    """Imports take longer than the tiny run: one process does them, and every rank is a fork of it."""
    os.environ["PYTHONPATH"] = os.pathsep.join({str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vitscale.cli", "vitscale.api", __name__])
    return context


def _train(variables: dict[str, str], output: str, arguments: list[str]) -> None:
    os.environ.update(variables)
    # A group of its own: what a signal to the test's group does is not what is tested.
    os.setpgid(0, 0)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv[:] = ["vitscale", *arguments]
    import torch

    from vitscale.cli import app

    torch.set_num_threads(1)
    app(arguments)
