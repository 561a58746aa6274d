"""Failures among the workers: whose fault, what is restarted, and what the user reads."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from vitscale.config import CorruptionError, DataError, NonFiniteLossError
from vitscale_launch.failures import DetectionLedger, find_user_error, first_failure, outcome_of
from vitscale_launch.outcome import Failed, Refused
from vitscale_launch.supervise import Failure

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
    assert outcome_of(wrapped) == Refused(error="DataError", message=str(DAMAGED))


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
        ({0: GLOO, 1: GLOO}, 0, "it lost its connection to another worker"),
    ],
)
def test_the_cause_is_blamed_and_not_who_lost_the_connection(failures: dict[int, BaseException], rank: int, reason: str) -> None:
    failure = first_failure(failures)
    assert failure.rank == rank
    assert reason in failure.reason
    assert (failure.trace is None) == (reason == "its process died")


def test_what_failed_may_be_tried_again() -> None:
    outcome = outcome_of(WorkerGroupError("x", {0: GLOO, 1: BUG}))
    assert isinstance(outcome, Failed)
    assert (outcome.failure.kind, outcome.failure.rank, outcome.failure.reason) == ("worker", 1, "KeyError: 'x'")
    assert 'File "b.py", line 3' in (outcome.failure.trace or "")


def test_a_cluster_that_cannot_start_workers_is_told() -> None:
    outcome = outcome_of(ControllerError(TimeoutError("no resources for 4 workers")))
    assert outcome == Failed(failure=Failure(kind="start", reason="no resources for 4 workers"))


@pytest.mark.parametrize(
    "error",
    [ActorUnavailableError("gone", b"0" * 16), ActorDiedError(), ControllerError(ActorDiedError()), ConnectionError("no head")],
)
def test_without_its_controller_ray_is_lost(error: BaseException) -> None:
    outcome = outcome_of(error)
    assert isinstance(outcome, Failed)
    assert outcome.failure.kind == "cluster"
    assert outcome.failure.reason.startswith("Ray was lost, ")


def test_a_lost_machine_is_told_from_a_dead_process() -> None:
    lost = WorkerHealthCheckFailedError("Worker 1: the actor died because its node has died. Node Id: 12", ActorDiedError())
    assert first_failure({0: GLOO, 1: lost}).reason == "its machine left the cluster"


def recorded(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_moment_of_a_failure_is_recorded(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    ledger = DetectionLedger(events=events)
    ledger.after_exception(None, {0: GLOO, 1: DIED})
    ledger.after_exception(None, {0: BUG, 1: GLOO})
    first, second = recorded(events)
    assert (first["event"], first["rank"], "trace" in first) == ("worker_failed", 1, False)
    assert first["reason"].startswith("its process died")
    assert (second["rank"], second["reason"]) == (0, "KeyError: 'x'")
    assert "KeyError" in second["trace"]


def corrupted(*ranks: int) -> CorruptionError:
    error = CorruptionError("step 3: silent corruption: the copy is wrong")
    error.ranks = ranks
    travelled: CorruptionError = pickle.loads(pickle.dumps(error))  # as Ray sends it
    return travelled


@pytest.mark.parametrize(
    ("ranks", "rank", "reason"),
    [((1,), 1, "its memory changed by itself"), ((0, 1), None, "the memory of one of the ranks 0, 1 changed by itself")],
)
def test_a_rank_whose_memory_is_bad_has_failed_and_the_run_has_not(
    tmp_path: Path, ranks: tuple[int, ...], rank: int | None, reason: str
) -> None:
    failures = {number: in_worker(corrupted(*ranks)) for number in range(2)}
    outcome = outcome_of(WorkerGroupError("failed", failures))
    assert outcome == Failed(failure=Failure(kind="worker", rank=rank, reason=reason, trace=str(corrupted())))
    DetectionLedger(events=tmp_path / "events.jsonl").after_exception(None, failures)
    (event,) = recorded(tmp_path / "events.jsonl")
    assert (event["event"], event.get("rank"), event["reason"]) == ("worker_failed", rank, reason)


def test_a_users_error_is_for_the_command_to_tell(tmp_path: Path) -> None:
    DetectionLedger(events=tmp_path / "events.jsonl").after_exception(None, {0: GLOO, 1: in_worker(NonFiniteLossError("step 3"))})
    assert not (tmp_path / "events.jsonl").exists()
