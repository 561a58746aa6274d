"""`vitscale train` on the tiny run as two processes that a test may signal and kill, forked from one that has done the imports."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from tests.launcher import ROOT, become, rank_environments, warm_context
from tests.train.tiny_run import tiny_values
from vitscale.cli import app
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
        arguments = ["train", str(write_tiny(root)), *overrides]
        self.processes: list[BaseProcess] = []
        for environment, path in zip(rank_environments(num_ranks), self._outputs, strict=True):
            path.unlink(missing_ok=True)
            self.processes.append(start_command(arguments, environment=environment, outputs=[path, path]))

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


def start_command(arguments: Sequence[str], *, environment: Mapping[str, str], outputs: Sequence[Path], folder: Path = ROOT) -> BaseProcess:
    """Start `vitscale arguments...` in `folder` as such a process; `outputs` are its standard output and standard error."""
    paths = [str(path) for path in outputs]
    process = warm_context().Process(target=_vitscale, args=(list(arguments), dict(environment), paths, str(folder)))
    process.start()
    return process


def _vitscale(arguments: list[str], environment: dict[str, str], outputs: list[str], folder: str) -> None:
    become(environment, outputs=outputs)
    os.chdir(folder)
    sys.argv[:] = ["vitscale", *arguments]
    torch.set_num_threads(1)
    app(arguments)
