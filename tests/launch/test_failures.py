"""Failures among the workers: whose fault, what is restarted, and what the user reads."""

import json
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from vitscale.config import ConfigError, DataError, NonFiniteLossError, UserError
from vitscale_launch.failures import RestartLedger, find_user_error, first_failure, training_error

DAMAGED = DataError("shard-0.tar: sample 45 is damaged")
GLOO = UserExceptionWithTraceback(
    RuntimeError("x"), 'Traceback:\n  File "a.py"\nRuntimeError: [gloo/tcp/pair.cc:538] Connection closed by peer'
)
DIED = WorkerHealthCheckFailedError("Worker 1 failed its health check", ActorDiedError())
BUG = UserExceptionWithTraceback(KeyError("x"), "Traceback:\n  File \"b.py\", line 3\nKeyError: 'x'")


def in_worker(error: BaseException) -> UserExceptionWithTraceback:
    return UserExceptionWithTraceback(error, f"Traceback:\n{type(error).__name__}: {error}")


@pytest.mark.parametrize(
    "wrapped",
    [
        DAMAGED,
        in_worker(DAMAGED),
        ControllerError(DAMAGED),
        ControllerError(in_worker(DAMAGED)),
        WorkerGroupError("failed", {0: GLOO, 1: in_worker(DAMAGED)}),
        RayTaskError("trial", "trace", DAMAGED).as_instanceof_cause(),
    ],
    ids=["itself", "worker", "controller", "controller-worker", "group", "task"],
)
def test_the_users_error_is_found_inside_rays(wrapped: BaseException) -> None:
    assert find_user_error(wrapped) is DAMAGED
    assert training_error(wrapped, max_restarts=3) is DAMAGED


@pytest.mark.parametrize("error", [GLOO, DIED, BUG, ControllerError(ValueError("x")), WorkerGroupError("x", {0: BUG})])
def test_other_errors_are_not_the_users(error: BaseException) -> None:
    assert find_user_error(error) is None


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert find_user_error(first) is None


@pytest.mark.parametrize(
    ("failures", "rank", "reason"),
    [
        ({0: GLOO, 1: DIED}, 1, "its process died"),
        ({0: DIED, 1: GLOO}, 0, "its process died"),
        ({0: GLOO, 1: BUG}, 1, "KeyError: 'x'"),
        ({0: GLOO, 1: GLOO}, 0, "Connection closed by peer"),
    ],
)
def test_the_cause_is_blamed_and_not_who_lost_the_connection(failures: dict[int, BaseException], rank: int, reason: str) -> None:
    failure = first_failure(failures)
    assert failure.rank == rank
    assert reason in failure.reason
    assert (failure.trace is None) == (reason == "its process died")


def test_workers_that_keep_failing_are_one_paragraph_and_their_trace() -> None:
    error = training_error(WorkerGroupError("x", {0: GLOO, 1: BUG}), max_restarts=2)
    assert (type(error), error.exit_code) == (UserError, 1)
    assert "rank 1 failed after 2 restarts: KeyError: 'x'." in str(error)
    assert 'File "b.py", line 3' in str(error)


def test_a_cluster_that_cannot_start_workers_is_told() -> None:
    error = training_error(ControllerError(TimeoutError("no resources for 4 workers")), max_restarts=2)
    assert error.exit_code == 1
    assert "no resources for 4 workers" in str(error)


def restart_events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_users_error_ends_the_run_at_once(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.touch()
    ledger = RestartLedger(events=events, max_restarts=3)
    for error in (ConfigError("bad key"), NonFiniteLossError("step 3: the loss is nan")):
        with pytest.raises(type(error), match=str(error)):
            ledger.after_exception(None, {0: in_worker(error), 1: GLOO})
    assert restart_events(events) == []


def test_every_restart_is_recorded_with_its_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = tmp_path / "events.jsonl"
    events.touch()
    ledger = RestartLedger(events=events, max_restarts=2)
    ledger.after_exception(None, {0: GLOO, 1: DIED})
    ledger.after_exception(None, {0: BUG, 1: GLOO})
    ledger.after_exception(None, {0: BUG, 1: GLOO})  # beyond the limit: Ray gives up, nothing is restarted
    first, second = restart_events(events)
    assert (first["event"], first["restart"], first["rank"], "trace" in first) == ("restart", 1, 1, False)
    assert (second["event"], second["restart"], second["rank"]) == ("restart", 2, 0)
    assert "KeyError" in second["trace"]
    assert capsys.readouterr().out.splitlines() == [first["message"], second["message"]]


def test_a_failure_before_there_is_a_run_directory_is_only_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RestartLedger(events=tmp_path / "missing" / "events.jsonl", max_restarts=1).after_exception(None, {0: DIED})
    assert "restart 1 of at most 1" in capsys.readouterr().out
