"""Joining a Ray cluster and leaving it."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray._private.services import canonicalize_bootstrap_address

from vitscale.config import UsageError
from vitscale_launch import cluster
from vitscale_launch.workers import ClusterResources, Workers

END_IN_BODY = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore it
from vitscale_launch.environment import prepare_environment
prepare_environment(local=True)
from vitscale.config.presentation import present_errors
from vitscale_launch import cluster
import ray

class Fake:  # stands for Ray, which turns what a handler raises while it waits into SystemExit(1)
    LoggingConfig = ray.LoggingConfig
    def init(self, **settings):
        assert settings["address"] == "local"
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    def shutdown(self): print("left the cluster", flush=True)
    def cluster_resources(self): return {"CPU": 2.0}

cluster.ray = Fake()
with present_errors(debug=False), cluster.ray_cluster(address=None, num_cpus=2) as found:
    assert (found.num_cpus, found.num_gpus, found.is_local) == (2, 0, True)
    try:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        signal.pause()
    except BaseException:
        raise SystemExit(1) from None
"""


@pytest.mark.dist
@pytest.mark.parametrize(("name", "code", "last"), [("SIGTERM", 143, ""), ("SIGINT", 130, "interrupted")])
def test_a_signal_leaves_the_cluster_and_is_told_by_the_exit_code(name: str, code: int, last: str) -> None:
    done = subprocess.run([sys.executable, "-c", END_IN_BODY, name], capture_output=True, text=True, timeout=60)
    assert done.stdout == "left the cluster\n", done.stderr
    assert done.returncode == code
    assert done.stderr.strip().endswith(last)


class Refusing:
    """Stands for Ray where no cluster answers."""

    exceptions = ray.exceptions

    def __init__(self, error: Exception) -> None:
        self.error = error

    def init(self, **settings: object) -> None:
        assert settings["address"] == "head"
        raise self.error

    def shutdown(self) -> None:
        """Nothing to leave."""


@pytest.mark.parametrize("kind", [ConnectionError, ValueError, ray.exceptions.AuthenticationError])
def test_an_address_without_a_cluster_is_a_usage_error(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ray", Refusing(kind("no answer.")))
    with pytest.raises(UsageError, match=r"--address head: cannot join this Ray cluster: .*no answer"), enter("head"):
        pass


def test_an_address_where_nobody_listens_does_not_wait_for_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    with pytest.raises(UsageError, match="nobody listens there"), enter(address):
        pass


def test_a_local_cluster_is_a_new_one_whatever_ray_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `ray start` leaves the address of its cluster in a file, which outlives that; all but "local" would join what it names.
    (tmp_path / "ray_current_cluster").write_text("10.0.0.1:6379")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert canonicalize_bootstrap_address("local", str(tmp_path)) is None


@pytest.mark.parametrize(
    ("free", "workers", "room"),
    [
        ({"CPU": 5.0}, Workers(num_workers=2, cpus=2, use_gpu=False), 2),
        ({"CPU": 5.0}, Workers(num_workers=2, cpus=1, use_gpu=True), 0),
        ({"CPU": 5.0, "GPU": 3.0}, Workers(num_workers=2, cpus=1, use_gpu=True), 3),
        ({}, Workers(num_workers=2, cpus=1, use_gpu=False), 0),
    ],
)
def test_there_is_room_for_what_nobody_uses(free: dict[str, float], workers: Workers, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ray, "available_resources", lambda: free)
    assert cluster.room_for(workers) == room


def enter(address: str) -> contextlib.AbstractContextManager[ClusterResources]:
    return cluster.ray_cluster(address=address, num_cpus=1)
