"""The decision after a failed attempt, as a table."""

from typing import Any

import pytest

from vitscale_launch.supervise import Failure, GiveUp, Policy, Restart, Shrink, Status, Wait, decide, restart_delay, restarts_used

POLICY = Policy(num_workers=4, allowed_workers=(4,))
ELASTIC = Policy(num_workers=4, allowed_workers=(1, 2, 4))


def died(committed: int, *, rank: int = 1, reason: str = "its process died", kind: Any = "worker", reached: int = 0) -> Failure:
    return Failure(kind=kind, rank=None if kind != "worker" else rank, reason=reason, committed=committed, reached=reached)


def status(*failures: Failure, committed: int | None = None, capacity: int | None = 4, waited: float = 0.0, num_workers: int = 4) -> Status:
    newest = failures[-1].committed if committed is None and failures else committed or 0
    return Status(failures=failures, committed=newest, num_workers=num_workers, capacity=capacity, waited_seconds=waited)


@pytest.mark.parametrize(
    ("found", "policy", "expected"),
    [
        # A death is made good at once; without progress the pauses double.
        (status(died(10)), POLICY, Restart(after_seconds=0.0, num_workers=4)),
        (status(died(10, rank=0), died(10, rank=1)), POLICY, Restart(after_seconds=5.0, num_workers=4)),
        (status(died(10, rank=0), died(10, rank=1), died(10, rank=2)), POLICY, Restart(after_seconds=10.0, num_workers=4)),
        # What was waited already is part of the pause.
        (status(died(10, rank=0), died(10, rank=1), waited=3.0), POLICY, Restart(after_seconds=2.0, num_workers=4)),
        (status(died(10, rank=0), died(10, rank=1), waited=9.0), POLICY, Restart(after_seconds=0.0, num_workers=4)),
        # Progress ends the doubling, and failures that enough steps have followed no longer count.
        (status(died(10, rank=0), died(20, rank=1)), POLICY, Restart(after_seconds=0.0, num_workers=4)),
        (status(*(died(200 * n) for n in range(50))), POLICY, Restart(after_seconds=0.0, num_workers=4)),
        # Ray's loss is made good like a worker's.
        (status(died(10, kind="cluster")), POLICY, Restart(after_seconds=0.0, num_workers=4)),
        # Too little is there: wait, unless fewer will do.
        (status(died(10), capacity=None), POLICY, Wait(reason="the Ray cluster does not answer")),
        (status(died(10), capacity=3), POLICY, Wait(reason="the Ray cluster has room for 3 of the 4 workers")),
        (status(died(10), capacity=3, waited=599.0), POLICY, Wait(reason="the Ray cluster has room for 3 of the 4 workers")),
        (status(died(10), capacity=3, waited=1.0), ELASTIC, Wait(reason="the Ray cluster has room for 3 of the 4 workers")),
        (status(died(10), capacity=3, waited=10.0), ELASTIC, Shrink(after_seconds=0.0, num_workers=2)),
        (status(died(10), capacity=1, waited=10.0), ELASTIC, Shrink(after_seconds=0.0, num_workers=1)),
        (status(died(10), capacity=0, waited=10.0), ELASTIC, Wait(reason="the Ray cluster has room for 0 of the 1 workers")),
        # Fewer than wanted, but as many as before: nothing to wait for. When more are there again, they are used.
        (status(died(10), capacity=2, num_workers=2), ELASTIC, Restart(after_seconds=0.0, num_workers=2)),
        (status(died(10), capacity=8, num_workers=2), ELASTIC, Restart(after_seconds=0.0, num_workers=4)),
        # Before anything has failed, a start that finds too little is treated alike.
        (status(capacity=4), POLICY, Restart(after_seconds=0.0, num_workers=4)),
        (status(capacity=2, waited=11.0), ELASTIC, Shrink(after_seconds=0.0, num_workers=2)),
    ],
)
def test_what_is_done(found: Status, policy: Policy, expected: object) -> None:
    assert decide(found, policy) == expected


@pytest.mark.parametrize(
    ("found", "policy", "reasons"),
    [
        # The same again, three times: step, rank, error and tries are named.
        (
            status(*[died(40, reason="KeyError: 'x'", reached=47)] * 3),
            Policy(num_workers=4, allowed_workers=(4,), max_restarts=20),
            ("rank 1 failed 3 times", "after step 40 (the last one logged is 47)", "KeyError: 'x'"),
        ),
        # Different failures, but too many of them for the steps done.
        (
            status(*(died(50 * n, rank=n) for n in range(4))),
            POLICY,
            ("the worker of rank 3 failed after 3 restarts, after step 150", "--max-restarts", "within 200 steps"),
        ),
        (status(died(0)), Policy(num_workers=4, allowed_workers=(4,), max_restarts=0), ("the worker of rank 1 failed, after step 0",)),
        (status(died(0, kind="cluster", reason="x")), Policy(num_workers=1, allowed_workers=(1,), max_restarts=0), ("Ray was lost, ",)),
        # Nobody knows whose memory it was.
        (
            status(*[Failure(kind="worker", reason="ranks 0 and 1 differ")] * 3),
            POLICY,
            ("the workers failed 3 times", "ranks 0 and 1 differ"),
        ),
        (status(*[died(0, kind="start", reason="no room")] * 5), POLICY, ("could not start the workers, 5 times: no room",)),
        (status(died(0), capacity=None, waited=600.0), POLICY, ("does not answer, for 600 seconds now", "--wait-for-cluster")),
        (status(died(0), capacity=3, waited=601.0), POLICY, ("has room for 3 of the 4 workers", "--min-workers")),
    ],
)
def test_when_it_gives_up_it_says_why(found: Status, policy: Policy, reasons: tuple[str, ...]) -> None:
    decision = decide(found, policy)
    assert isinstance(decision, GiveUp)
    for reason in reasons:
        assert reason in decision.reason


def test_another_rank_or_another_reason_is_no_crash_loop() -> None:
    policy = Policy(num_workers=4, allowed_workers=(4,), max_restarts=20)
    for failures in ([died(40), died(40), died(40, rank=2)], [died(40), died(40), died(40, reason="x")], [died(40), died(40), died(41)]):
        assert isinstance(decide(status(*failures), policy), Restart)


def test_failures_to_start_cost_no_restart() -> None:
    found = status(*[died(10, kind="start")] * 4, died(10))
    assert restarts_used(found, POLICY) == 1
    assert isinstance(decide(found, POLICY), Restart)


@pytest.mark.parametrize(("committed", "used"), [(0, 3), (149, 3), (200, 2), (250, 1), (300, 0)])
def test_the_budget_refills_with_progress(committed: int, used: int) -> None:
    assert restarts_used(status(died(0), died(50), died(100), committed=committed), POLICY) == used


def test_the_pauses_double_up_to_the_longest() -> None:
    pauses = [restart_delay(status(*[died(0)] * n), POLICY) for n in range(1, 12)]
    assert pauses == [0.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0, 300.0]
    assert restart_delay(status(*[died(0)] * 5000), POLICY) == 300.0
