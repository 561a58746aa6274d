"""The launch loop against scripted attempts: what is tried, told and recorded."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vitscale.config import DataError, StopRequested, UserError
from vitscale.train.progress import Progress
from vitscale.train.stop_request import STOP_REQUEST, ask_to_stop
from vitscale_launch.attempts import Supervisor
from vitscale_launch.ledger import LaunchLedger
from vitscale_launch.outcome import Failed, Finished, Outcome, Refused, Stopped
from vitscale_launch.supervise import Failure, Policy

DIED = Failed(failure=Failure(kind="worker", rank=1, reason="its process died", trace="Traceback: x"))
LOST = Failed(failure=Failure(kind="cluster", reason="Ray was lost"))
DONE = Finished(values={"step": 6})


class Script:
    """Attempts that end as written, after a number of steps each, in a cluster whose room changes as written."""

    def __init__(self, outcomes: list[Outcome], *, capacities: list[int | None] | None = None, steps_each: int = 0) -> None:
        self.outcomes = iter(outcomes)
        self.capacities: Iterator[int | None] = iter(capacities or [])
        self.steps_each = steps_each
        self.committed = 0
        self.runs: list[tuple[int, int]] = []
        self.during: Callable[[], None] = lambda: None

    def capacity(self) -> int | None:
        return next(self.capacities, 2)

    def run(self, *, attempt: int, num_workers: int, poll: Callable[[], None]) -> Outcome:
        self.runs.append((attempt, num_workers))
        self.during()
        poll()
        poll()
        self.committed += self.steps_each
        return next(self.outcomes)

    def progress(self) -> Progress:
        return Progress(committed=self.committed, reached=self.committed + 3)


class Stop:
    """Stands for the signals: pauses are noted instead of made, and move the clock."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.pauses: list[float] = []

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def clock(self) -> float:
        return sum(self.pauses)


def supervisor(script: Script, run_dir: Path, stop: Stop, **policy: Any) -> Supervisor:
    run_dir.mkdir(exist_ok=True)
    return Supervisor(
        attempts=script,
        policy=Policy(**({"num_workers": 2, "allowed_workers": (2,)} | policy)),
        run_dir=run_dir,
        launch="a",
        ledger=LaunchLedger(run_dir / "events.jsonl"),
        progress=script.progress,
        stop=stop,  # type: ignore[arg-type]
        clock=stop.clock,
    )


def records(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_run_that_finishes_is_left_alone(tmp_path: Path) -> None:
    script, stop = Script([DONE]), Stop()
    assert supervisor(script, tmp_path, stop).train(num_workers=2) == {"step": 6}
    assert script.runs == [(0, 2)]
    assert records(tmp_path) == []
    assert stop.pauses == []


def test_deaths_are_made_good_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, stop = Script([DIED, LOST, DONE], steps_each=50), Stop()
    supervisor(script, tmp_path, stop).train(num_workers=2)
    assert script.runs == [(0, 2), (1, 2), (2, 2)]
    first, second = records(tmp_path)
    assert (first["event"], first["rank"], first["reason"], first["seconds"], first["step"]) == ("restart", 1, "its process died", 0.0, 50)
    assert (second["event"], second["reason"], second["restart"], "rank" in second) == ("restart", "Ray was lost", 2, False)
    assert capsys.readouterr().out.splitlines() == [first["message"], second["message"]]
    assert first["message"].startswith("the worker of rank 1 failed (its process died): restarting all 2 workers")


@pytest.mark.parametrize("outcome", [Refused(error="DataError", message="damaged"), Stopped(message="stopped after step 3")])
def test_a_users_error_or_a_stop_ends_the_launch_at_once(tmp_path: Path, outcome: Outcome) -> None:
    script = Script([outcome])
    with pytest.raises((DataError, StopRequested), match=r"damaged|stopped after step 3"):
        supervisor(script, tmp_path, Stop()).train(num_workers=2)
    assert script.runs == [(0, 2)]


def test_a_crash_loop_ends_with_its_step_rank_error_and_trace(tmp_path: Path) -> None:
    script, stop = Script([DIED] * 9), Stop()
    script.committed = 40
    with pytest.raises(UserError) as caught:
        supervisor(script, tmp_path, stop, max_restarts=8).train(num_workers=2)
    assert "rank 1 failed 3 times in the same place, after step 40 (the last one logged is 43): its process died." in str(caught.value)
    assert str(caught.value).endswith("\nTraceback: x")
    assert [record["event"] for record in records(tmp_path)] == ["restart", "restart", "gave_up"]
    assert stop.pauses == [0.0, 5.0]


def test_lost_machines_are_waited_for_and_told_once(tmp_path: Path) -> None:
    script, stop = Script([LOST, DONE], capacities=[None] * 140 + [1] * 3 + [2]), Stop()
    supervisor(script, tmp_path, stop).train(num_workers=2)
    assert script.runs == [(0, 2), (1, 2)]
    told = [(record["event"], record.get("reason"), record["seconds"]) for record in records(tmp_path)]
    assert told == [
        ("wait", "the Ray cluster does not answer", 3.0),
        ("wait", "the Ray cluster does not answer", 63.0),
        ("wait", "the Ray cluster has room for 1 of the 2 workers", 70.0),
        ("restart", "Ray was lost", 0.0),
    ]


def test_resources_that_come_back_in_a_moment_are_not_spoken_of(tmp_path: Path) -> None:
    script, stop = Script([DIED, DONE], capacities=[0] * 5 + [2]), Stop()
    supervisor(script, tmp_path, stop).train(num_workers=2)
    assert [record["event"] for record in records(tmp_path)] == ["restart"]
    assert stop.clock() == 2.5


def test_fewer_workers_go_on_where_the_user_allows_it(tmp_path: Path) -> None:
    script, stop = Script([DIED, DIED, DONE], capacities=[1] * 22, steps_each=50), Stop()
    supervisor(script, tmp_path, stop, allowed_workers=(1, 2)).train(num_workers=2)
    assert script.runs == [(0, 2), (1, 1), (2, 1)]
    assert [(record["event"], record.get("num_workers")) for record in records(tmp_path)] == [("wait", None), ("shrink", 1), ("restart", 1)]


def test_the_wait_is_bounded(tmp_path: Path) -> None:
    script, stop = Script([LOST], capacities=[None] * 999), Stop()
    with pytest.raises(UserError, match="does not answer, for 30 seconds now"):
        supervisor(script, tmp_path, stop, wait_seconds=30.0).train(num_workers=2)


def test_a_signal_is_passed_on_once_and_the_request_withdrawn(tmp_path: Path) -> None:
    script, stop = Script([Stopped(message="stopped after step 3")]), Stop()
    seen: list[Any] = []

    def during() -> None:
        stop.reason = "SIGUSR1"

    script.during = during
    original = script.progress
    made = supervisor(script, tmp_path, stop)

    class Looking(Script):
        """Reads the request as a worker would, after the command was asked to pass it on."""

        def run(self, *, attempt: int, num_workers: int, poll: Callable[[], None]) -> Outcome:
            outcome = script.run(attempt=attempt, num_workers=num_workers, poll=poll)
            seen.append(json.loads((tmp_path / STOP_REQUEST).read_text()))
            return outcome

    made.attempts = Looking([])
    with pytest.raises(StopRequested, match="stopped after step 3"):
        made.train(num_workers=2)
    assert original().committed == 0
    assert (seen[0]["launch"], seen[0]["reason"]) == ("a", "SIGUSR1 to the command that started the workers")
    assert not (tmp_path / STOP_REQUEST).exists()
    assert [record["event"] for record in records(tmp_path)] == ["stop_asked"]


def test_a_run_that_dies_while_it_is_to_stop_is_not_restarted(tmp_path: Path) -> None:
    script, stop = Script([DIED]), Stop()
    script.committed = 40
    script.during = lambda: setattr(stop, "reason", "SIGTERM")
    with pytest.raises(StopRequested, match=r"rank 1 failed .its process died.\); the newest checkpoint is that of step 40"):
        supervisor(script, tmp_path, stop).train(num_workers=2)
    assert script.runs == [(0, 2)]


def test_a_signal_before_the_first_attempt_starts_nothing(tmp_path: Path) -> None:
    script, stop = Script([DONE]), Stop()
    stop.reason = "SIGTERM"
    with pytest.raises(StopRequested, match="there is no checkpoint yet"):
        supervisor(script, tmp_path, stop).train(num_workers=2)
    assert script.runs == []


def test_somebody_elses_request_is_not_withdrawn(tmp_path: Path) -> None:
    ask_to_stop(tmp_path, reason="by hand")
    supervisor(Script([DONE]), tmp_path, Stop()).train(num_workers=2)
    assert (tmp_path / STOP_REQUEST).exists()
