"""Stopping: one decision for all, and the first step that went wrong."""

import os
import signal

import pytest

from vitscale.train.guards import NonFinite, StopRequest, Verdict, non_finite_message


def test_a_step_given_beforehand_stops_there() -> None:
    stop = StopRequest(stop_at_step=3)
    try:
        assert [stop.vote(step, failed=False).verdict for step in (1, 2, 3, 4)] == [
            Verdict.GO_ON,
            Verdict.GO_ON,
            Verdict.STOP,
            Verdict.STOP,
        ]
        assert stop.vote(3, failed=True).verdict is Verdict.FAIL, "what went wrong is said, not that the run was to stop anyway"
        assert [stop.is_reached(step) for step in (1, 2, 3, 4)] == [False, False, True, True]
    finally:
        stop.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_and_a_second_one_would_act_as_before(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    try:
        assert stop.vote(1, failed=False).verdict is Verdict.GO_ON
        os.kill(os.getpid(), number)
        assert stop.vote(2, failed=False).verdict is Verdict.STOP
        assert signal.getsignal(number) is before
    finally:
        stop.close()
    assert signal.getsignal(number) is before


def test_others_may_ask_too() -> None:
    answers = iter([False, True])
    stop = StopRequest(sources=[lambda: False, lambda: next(answers)])
    try:
        assert [stop.vote(step, failed=False).verdict for step in (1, 2)] == [Verdict.GO_ON, Verdict.STOP]
    finally:
        stop.close()


def test_the_message_names_step_samples_and_checkpoint() -> None:
    found = NonFinite(step=12, what="the loss is nan")
    message = non_finite_message(found, sample_ids=list(range(100, 140)), newest_checkpoint="runs/x/checkpoints/step-00000010")
    assert message.startswith("step 12: the loss is nan.")
    assert "100, 101," in message
    assert "115, ... (40 in all" in message
    assert "runs/x/checkpoints/step-00000010" in message
