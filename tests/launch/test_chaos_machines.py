"""How a rehearsal asks for something on other machines: what is sent, and each way in which it is not done."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from vitscale_launch import chaos_machines
from vitscale_launch.chaos_faults import FaultNotDone
from vitscale_launch.chaos_machines import RemoteMachines

JOINED = {"num_cpus": 2, "num_gpus": 0, "is_local": False}
REFUSED = {"outcome": "Refused", "error": "UsageError", "message": "no"}
DONE = {"reason": None}


class Process:
    """Stands for the process that is connected to Ray: gives the answers in turn, None where it has ended."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = iter(answers)
        self.questions: list[dict[str, Any]] = []

    def ask(self, question: dict[str, Any], **_: Any) -> Any:
        self.questions.append(json.loads(json.dumps(question)))
        return next(self.answers)

    def close(self) -> int:
        return 0


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple["RemoteMachines", "Process"]]:
    """Makes them, with what the first process answers."""

    def make(*answers: Any) -> tuple[RemoteMachines, Process]:
        process = Process(list(answers))
        monkeypatch.setattr(chaos_machines, "ClusterProcess", lambda: process)
        return RemoteMachines("head"), process

    return make


def test_the_cluster_is_joined_once_and_each_question_sent(machines: Any) -> None:
    made, process = machines(JOINED, DONE, DONE)
    assert process.questions == []
    made.reach()
    made.signal(9, pid=77, host="m2")
    made.cut("eth0", seconds=5.0, host="m3")
    made.close()
    assert process.questions == [
        {"do": "join", "address": "head", "num_cpus": 0},
        {"do": "signal", "number": 9, "pid": 77, "host": "m2"},
        {"do": "cut", "interface": "eth0", "seconds": 5.0, "host": "m3"},
    ]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([REFUSED], "the Ray cluster does not answer"),
        ([None], "the Ray cluster does not answer"),
        ([JOINED, {"reason": "No such process"}], "process 77 on m2 cannot be signalled: No such process"),
        # Nobody knows whether it was done before the connection was lost.
        ([JOINED, None], "process 77 on m2 cannot be signalled: the Ray cluster was lost"),
    ],
)
def test_what_is_not_done_is_told(machines: Any, answers: list[Any], reason: str) -> None:
    made, _ = machines(*answers)
    with pytest.raises(FaultNotDone) as caught:
        made.signal(9, pid=77, host="m2")
    assert str(caught.value) == reason


def test_a_cut_that_is_not_possible_is_told(machines: Any) -> None:
    made, _ = machines(JOINED, {"reason": "needs root"})
    with pytest.raises(FaultNotDone, match="eth0 of m3 cannot be taken down: needs root"):
        made.cut("eth0", seconds=5.0, host="m3")
