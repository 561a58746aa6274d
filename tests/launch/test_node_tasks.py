"""What a rehearsal has done on a machine of the cluster, by the name that the machine calls itself."""

import os
import signal
import subprocess
import sys

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vitscale_launch import node_tasks
from vitscale_launch.link import why_not
from vitscale_launch.node_tasks import cut_link, send_signal

HERE = os.uname().nodename


def alive(*names: str) -> list[dict[str, object]]:
    gone = {"NodeID": "0", "Alive": False, "NodeManagerHostname": "a"}
    return [gone, *({"NodeID": f"{number:056x}", "Alive": True, "NodeManagerHostname": name} for number, name in enumerate(names, start=1))]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["b"], "no machine of the Ray cluster calls itself a"),
        (["a", "b", "a"], "2 machines of the Ray cluster call themselves a"),
    ],
)
def test_a_machine_that_is_not_there_or_not_the_only_one_is_told(names: list[str], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: alive(*names))
    assert send_signal(signal.SIGKILL, pid=1, host="a") == reason
    assert cut_link("eth0", seconds=1.0, host="a") == reason


def test_a_cut_is_begun_only_where_it_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, float, float]] = []
    monkeypatch.setattr(node_tasks, "take_down_later", lambda name, *, after_seconds, seconds: begun.append((name, after_seconds, seconds)))
    monkeypatch.setattr(node_tasks, "why_not", lambda name: None if name == "eth0" else "no")
    assert node_tasks._cut("eth1", 5.0) == "no"
    assert begun == []
    assert node_tasks._cut("eth0", 5.0) is None
    assert begun == [("eth0", 1.0, 5.0)]


def test_what_is_told_not_to_have_been_done_is_not_done_later(monkeypatch: pytest.MonkeyPatch) -> None:
    class Task:
        def __call__(self, _: object) -> "Task":
            return self

        def options(self, *, scheduling_strategy: NodeAffinitySchedulingStrategy) -> "Task":
            assert int(scheduling_strategy.node_id, 16) == 1
            return self

        def remote(self, *_: object) -> str:
            return "pending"

    def get(pending: str, *, timeout: float) -> None:
        raise ray.exceptions.GetTimeoutError(f"{pending} for {timeout:.0f} seconds")

    cancelled: list[str] = []
    for name, stand_in in {"nodes": lambda: alive("a"), "remote": lambda **_: Task(), "get": get, "cancel": cancelled.append}.items():
        monkeypatch.setattr(ray, name, stand_in)
    assert send_signal(signal.SIGKILL, pid=1, host="a") == "pending for 20 seconds"
    assert cancelled == ["pending"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_it_is_done_by_a_task_on_the_machine_that_is_meant() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert send_signal(signal.SIGKILL, pid=process.pid, host="elsewhere") == "no machine of the Ray cluster calls itself elsewhere"
        assert process.poll() is None
        assert send_signal(signal.SIGKILL, pid=process.pid, host=HERE) is None
        assert process.wait(timeout=20) == -signal.SIGKILL
    assert send_signal(signal.SIGKILL, pid=process.pid, host=HERE) == "No such process"
    assert cut_link("nosuch0", seconds=1.0, host=HERE) == why_not("nosuch0")
