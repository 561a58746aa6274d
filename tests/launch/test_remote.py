"""The process that is connected to Ray, replaced by one that answers as told: questions, its death, a lost cluster."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.train.tiny_run import tiny_config
from vitscale.config import UsageError, UserError
from vitscale_launch import remote
from vitscale_launch.outcome import Failed, Finished, Stopped
from vitscale_launch.remote import ClusterProcess, Connection, RemoteAttempts
from vitscale_launch.supervise import Failure
from vitscale_launch.task import make_task
from vitscale_launch.workers import ClusterResources, Workers

# Answers the n-th question with the n-th argument; "die" kills it, and with no argument left it waits.
ANSWERS = """
import os, sys
with open(int(sys.argv[1]), "w") as out:
    for question, answer in zip(sys.stdin, sys.argv[2:]):
        if answer == "die":
            os.abort()
        print(answer, file=out, flush=True)
    sys.stdin.read()
"""
JOINED = '{"num_cpus": 2, "num_gpus": 0, "is_local": true}'
WORKERS = Workers(num_workers=2, cpus=1, use_gpu=False)


class Cast:
    """Decides what the next processes answer."""

    def __init__(self) -> None:
        self.scripts: list[list[str]] = []

    def __call__(self, command: list[str], **settings: Any) -> Any:
        assert command[1:4] == ["-P", "-m", "vitscale_launch.cluster_process"]
        return POPEN([sys.executable, "-c", ANSWERS, command[4], *self.scripts.pop(0)], **settings)


POPEN = remote.subprocess.Popen


@pytest.fixture
def cast(monkeypatch: pytest.MonkeyPatch) -> Cast:
    """Replaces the real process."""
    made = Cast()
    monkeypatch.setattr(remote.subprocess, "Popen", made)
    return made


@pytest.fixture
def connections() -> Iterator[list[Connection]]:
    """Closed at the end of the test."""
    made: list[Connection] = []
    yield made
    for connection in made:
        connection.close()


def connect(connections: list[Connection], cast: Cast, *scripts: list[str], address: str | None = None) -> Connection:
    cast.scripts = list(scripts)
    connections.append(Connection(ClusterProcess(), address=address, num_cpus=2))
    return connections[-1]


def attempts(connection: Connection, root: Path) -> RemoteAttempts:
    return RemoteAttempts(connection=connection, run_dir=root / "run", task=make_task(tiny_config(root)), workers=WORKERS)


def test_questions_are_answered(tmp_path: Path, cast: Cast, connections: list[Connection]) -> None:
    connection = connect(connections, cast, [JOINED, "2", '{"outcome": "Finished", "values": {"step": 6}}'])
    assert connection.join() == ClusterResources(num_cpus=2, num_gpus=0, is_local=True)
    made = attempts(connection, tmp_path)
    assert made.capacity() == 2
    assert made.run(attempt=0, num_workers=2, poll=lambda: None) == Finished(values={"step": 6})
    assert connection.close() == 0


def test_a_cluster_that_cannot_be_joined_is_the_users_error(cast: Cast, connections: list[Connection]) -> None:
    refusal = '{"outcome": "Refused", "error": "UsageError", "message": "--address x: cannot join"}'
    with pytest.raises(UsageError, match="--address x: cannot join"):
        connect(connections, cast, [refusal]).join()


def test_a_process_that_dies_while_joining_is_told(cast: Cast, connections: list[Connection]) -> None:
    with pytest.raises(UserError, match=r"the process that joins the Ray cluster ended .exit code -6."):
        connect(connections, cast, ["die"]).join()


def test_a_process_that_dies_is_a_lost_cluster_and_is_replaced(tmp_path: Path, cast: Cast, connections: list[Connection]) -> None:
    stopped = '{"outcome": "Stopped", "message": "stopped"}'
    connection = connect(connections, cast, [JOINED, "die"], [JOINED, "2", stopped])
    connection.join()
    made = attempts(connection, tmp_path)
    assert made.run(attempt=0, num_workers=2, poll=lambda: None) == Failed(
        failure=Failure(kind="cluster", reason="the process that was connected to Ray ended")
    )
    assert made.capacity() == 2, "a local cluster is started again"
    assert made.run(attempt=1, num_workers=2, poll=lambda: None) == Stopped(message="stopped")


def test_after_a_lost_cluster_the_connection_is_a_new_one(tmp_path: Path, cast: Cast, connections: list[Connection]) -> None:
    lost = '{"outcome": "Failed", "failure": {"kind": "cluster", "reason": "Ray was lost: x"}}'
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        connection = connect(connections, cast, [JOINED, lost], [JOINED, "1"], address=address)
        connection.join()
        made = attempts(connection, tmp_path)
        assert isinstance(made.run(attempt=0, num_workers=2, poll=lambda: None), Failed)
        assert made.capacity() == 1
        connection.close()
    assert made.capacity() is None, "nobody listens there any more: no process is started to find out"


def test_a_cluster_that_still_refuses_is_no_capacity(tmp_path: Path, cast: Cast, connections: list[Connection]) -> None:
    refusal = '{"outcome": "Refused", "error": "UsageError", "message": "no"}'
    connection = connect(connections, cast, [JOINED, "die"], [refusal], ["die"], [JOINED, "2"])
    connection.join()
    made = attempts(connection, tmp_path)
    assert [made.capacity() for _ in range(4)] == [None, None, None, 2]


def test_the_command_goes_on_while_it_waits_and_what_it_raises_ends_the_wait(cast: Cast, connections: list[Connection]) -> None:
    connection = connect(connections, cast, [JOINED])
    connection.join()
    calls = iter(range(3))

    def poll() -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        connection.ask({"do": "train"}, poll=poll)


def test_an_address_where_nobody_listens_ends_the_process_before_it_has_done_its_imports(connections: list[Connection]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    process = ClusterProcess()
    connections.append(Connection(process, address=address, num_cpus=2))
    with pytest.raises(UsageError, match="nobody listens there"):
        connections[0].join()
    assert connections[0].close() == -signal.SIGKILL


def test_control_c_does_not_reach_the_process(cast: Cast, connections: list[Connection]) -> None:
    connection = connect(connections, cast, [JOINED, "2"])
    process = connection._process
    assert process is not None
    assert os.getpgid(process._process.pid) != os.getpgid(0)
    process._process.send_signal(signal.SIGSTOP)
    process._process.send_signal(signal.SIGCONT)
    assert connection.join().num_cpus == 2
