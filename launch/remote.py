"""The command's side of the process that is connected to Ray: questions, answers, and what its death means."""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitscale.config import UserError

from .address import require_listener
from .outcome import Failed, Outcome, Refused, outcome_from_json
from .supervise import Failure
from .task import TrainTask
from .workers import ClusterResources, Workers

_SECONDS_BETWEEN_POLLS = 0.2
_SECONDS_TO_LEAVE = 20.0


class ClusterProcess:
    """Starts the process at once, so that its imports are done while the command plans; it joins no cluster before it is told."""

    def __init__(self) -> None:
        answers, descriptor = os.pipe()
        try:
            # -P: what is called vitscale in the working folder, such as a clone, is not taken for this package.
            # A session of its own: Ctrl-C is for the command, which passes it on as a request.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.cluster_process", str(descriptor)],
                stdin=subprocess.PIPE,
                pass_fds=(descriptor,),
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        self._answers = open(answers, "rb", buffering=0)  # noqa: SIM115
        self._has_asked = False

    def ask(self, question: dict[str, Any], *, poll: Callable[[], None] = lambda: None) -> Any:
        """Wait for the answer, `poll` being called all the time; None where the process ended instead of giving one."""
        assert self._process.stdin is not None
        self._has_asked = True
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        received = b""
        while not received.endswith(b"\n"):
            poll()
            if select.select([self._answers], [], [], _SECONDS_BETWEEN_POLLS)[0]:
                part = os.read(self._answers.fileno(), 1 << 16)
                if not part:
                    return None
                received += part
        return json.loads(received)

    def close(self) -> int:
        """Let it leave the cluster and end; returns its exit code."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if not self._has_asked:
            self._process.kill()  # it has joined nothing, and would do its imports first
        try:
            self._process.wait(timeout=_SECONDS_TO_LEAVE)
        except subprocess.TimeoutExpired:
            self._process.kill()
        finally:
            self._answers.close()
        return self._process.wait()


class Connection:
    """To the Ray cluster at `address`, or to a local one, through a process that is replaced when it was lost."""

    def __init__(self, process: ClusterProcess, *, address: str | None, num_cpus: int) -> None:
        self._process: ClusterProcess | None = process
        self._is_joined = False
        self._address = address
        self._num_cpus = num_cpus

    def join(self) -> ClusterResources:
        """Join the cluster, or start the local one. Raises the `UserError` that says why that is impossible."""
        require_listener(self._address)  # before a process is started for nothing
        process = self._process = self._process or ClusterProcess()
        answer = process.ask({"do": "join", "address": self._address, "num_cpus": self._num_cpus})
        if answer is None:
            raise UserError(
                f"the process that joins the Ray cluster ended (exit code {self.close()}); Ray's logs lie in /tmp/ray/session_latest/logs"
            )
        if "outcome" in answer:
            self.close()
            outcome = outcome_from_json(json.dumps(answer))
            assert isinstance(outcome, Refused)
            raise outcome.as_error()
        self._is_joined = True
        return ClusterResources(**answer)

    def is_there(self) -> bool:
        """Whether the cluster can be asked, after joining it where that is still to be done, or was lost."""
        if not self._is_joined:
            with contextlib.suppress(UserError):
                self.join()
        return self._is_joined

    def ask(self, question: dict[str, Any], *, poll: Callable[[], None] = lambda: None) -> Any:
        """The answer; None, and no connection any more, where the process ended instead of giving one."""
        assert self._process is not None
        answer = self._process.ask(question, poll=poll)
        if answer is None:
            self.close()
        return answer

    def close(self) -> int | None:
        """Leave the cluster; returns the exit code of the process, None if there was none."""
        process, self._process = self._process, None
        self._is_joined = False
        return None if process is None else process.close()


@dataclass(frozen=True, kw_only=True)
class RemoteAttempts:
    """Attempts of one launch over a connection that may be lost and made again."""

    connection: Connection
    run_dir: Path
    task: TrainTask
    workers: Workers

    def capacity(self) -> int | None:
        """How many workers there is room for now; None where the cluster does not answer."""
        if not self.connection.is_there():
            return None
        found: int | None = self.connection.ask({"do": "count", "workers": asdict(self.workers)})
        return found

    def run(self, *, attempt: int, num_workers: int, poll: Callable[[], None]) -> Outcome:
        """One attempt."""
        task, workers = replace(self.task, attempt=attempt), replace(self.workers, num_workers=num_workers)
        question = {"do": "train", "task": task.to_json(), "run_dir": str(self.run_dir), "workers": asdict(workers)}
        answer = self.connection.ask(question, poll=poll)
        if answer is None:
            return Failed(failure=Failure(kind="cluster", reason="the process that was connected to Ray ended"))
        outcome = outcome_from_json(json.dumps(answer))
        if isinstance(outcome, Failed) and outcome.failure.kind == "cluster":
            self.connection.close()
        return outcome
