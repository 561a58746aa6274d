"""The command around the loop: what it begins with, and that it leaves the cluster however it ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.tiny_run import tiny_config
from vitscale.config import StopRequested, UsageError
from vitscale_launch.launcher import launch_training
from vitscale_launch.outcome import Failed, Finished, Outcome, Stopped, outcome_to_json
from vitscale_launch.supervise import Failure, Policy

DIED = Failed(failure=Failure(kind="worker", rank=0, reason="its process died"))


class FakeProcess:
    """Stands for the process that is connected to Ray: a cluster of `num_cpus`, where attempts end as written."""

    def __init__(self, outcomes: list[Outcome], *, num_cpus: int = 2) -> None:
        self.outcomes = iter(outcomes)
        self.num_cpus = num_cpus
        self.questions: list[dict[str, Any]] = []
        self.is_closed = False

    def ask(self, question: dict[str, Any], **_: Any) -> Any:
        self.questions.append(question)
        if question["do"] == "join":
            return {"num_cpus": self.num_cpus, "num_gpus": 0, "is_local": question["address"] is None}
        if question["do"] == "count":
            return self.num_cpus // question["workers"]["cpus"]
        return launcher_json(next(self.outcomes))

    def close(self) -> int:
        self.is_closed = True
        return 0

    def trained_with(self) -> list[int]:
        return [question["workers"]["num_workers"] for question in self.questions if question["do"] == "train"]


def launcher_json(outcome: Outcome) -> Any:
    return json.loads(outcome_to_json(outcome))


def launch(root: Path, process: FakeProcess, *, allowed: tuple[int, ...] = (2,), address: str | None = None) -> dict[str, Any]:
    return launch_training(
        tiny_config(root),
        process=process,  # type: ignore[arg-type]
        policy=Policy(num_workers=allowed[-1], allowed_workers=allowed),
        address=address,
    )


def test_a_run_is_launched_and_the_cluster_left(tmp_path: Path) -> None:
    process = FakeProcess([DIED, Finished(values={"step": 6})])
    assert launch(tmp_path, process) == {"step": 6}
    assert process.trained_with() == [2, 2]
    assert process.is_closed


def test_the_cluster_is_left_after_a_stop_too(tmp_path: Path) -> None:
    process = FakeProcess([Stopped(message="stopped")])
    with pytest.raises(StopRequested):
        launch(tmp_path, process)
    assert process.is_closed


def test_a_cluster_that_is_too_small_is_told_unless_fewer_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = FakeProcess([Finished(values={})], num_cpus=3)
    with pytest.raises(UsageError, match="4 workers need 4 CPUs, but the Ray cluster has 3"):
        launch(tmp_path, process, allowed=(4,), address="auto")
    assert process.is_closed
    process = FakeProcess([Finished(values={})], num_cpus=3)
    launch(tmp_path, process, allowed=(1, 2, 4), address="auto")
    assert process.trained_with() == [2]
    assert "beginning with 2 workers" in capsys.readouterr().out
