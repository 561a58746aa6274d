"""Outcomes survive the way through JSON, and errors keep their class."""

import pytest

from vitscale.config import CheckpointError, ConfigError, NonFiniteLossError, UsageError, UserError
from vitscale_launch.outcome import Failed, Finished, Outcome, Refused, Stopped, outcome_from_json, outcome_to_json, refused
from vitscale_launch.supervise import Failure


@pytest.mark.parametrize(
    "outcome",
    [
        Finished(values={"step": 6, "values": {"loss": 0.1}}),
        Stopped(message="stopped\nafter step 3"),
        Refused(error="DataError", message="damaged"),
        Failed(failure=Failure(kind="worker", rank=1, reason="died", committed=3, reached=4, trace="a\nb")),
        Failed(failure=Failure(kind="cluster", reason="lost")),
    ],
)
def test_an_outcome_is_one_line_of_json(outcome: Outcome) -> None:
    text = outcome_to_json(outcome)
    assert "\n" not in text
    assert outcome_from_json(text) == outcome


@pytest.mark.parametrize("kind", [UserError, UsageError, ConfigError, CheckpointError, NonFiniteLossError])
def test_an_error_comes_back_as_its_class(kind: type[UserError]) -> None:
    error = refused(kind("what, where, how")).as_error()
    assert type(error) is kind
    assert str(error) == "what, where, how"


def test_of_a_private_class_the_nearest_known_one_comes_back() -> None:
    class Private(ConfigError):
        """Known here alone."""

    assert type(refused(Private("x")).as_error()) is ConfigError
