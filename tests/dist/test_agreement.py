"""Shared decisions: one rank's result or error becomes every rank's, alone and among two gloo processes that run this file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.launcher import run_ranks
from vitscale.config import CheckpointError, ConfigError, DataError, NonFiniteLossError, StopRequested, UsageError, UserError
from vitscale.dist.agreement import jointly, on_every_rank, on_main

ERRORS = (UserError, UsageError, ConfigError, DataError, CheckpointError, NonFiniteLossError, StopRequested)


def test_alone_the_result_comes_back() -> None:
    assert on_main(lambda: {"a": [1, None]}) == {"a": [1, None]}
    assert on_every_rank(lambda: 3) == [3]
    assert jointly(lambda: {3}) == {3}, "which is no JSON"


@pytest.mark.parametrize("agree", [on_main, on_every_rank, jointly])
@pytest.mark.parametrize("error_class", ERRORS)
def test_an_error_keeps_its_class_and_words_and_becomes_that_of_the_whole_run(
    agree: Callable[[Callable[[], Any]], Any], error_class: type[UserError]
) -> None:
    original = error_class("what, where, remedy")

    def fail() -> None:
        raise original

    with pytest.raises(UserError) as caught:
        agree(fail)
    assert type(caught.value) is error_class
    assert str(caught.value) == "what, where, remedy"
    assert caught.value.scope == "run"
    assert caught.value.__cause__ is original, "--debug shows where it was raised"


def test_a_bug_is_no_shared_error() -> None:
    with pytest.raises(ZeroDivisionError):
        on_main(lambda: 1 / 0)


@pytest.mark.dist
def test_two_ranks() -> None:
    expected = {
        "result of rank 0": "from 0",
        "results of all": [0, 10],
        "own result": True,
        "own error, shared": ["DataError", "rank 1 has none", "run"],
        "error of rank 0": ["UsageError", "rank 0 has none", "run"],
        "error of rank 1": ["DataError", "rank 1 has none", "run"],
        "errors of all": ["ConfigError", "rank 0 has none", "run"],
        "still in step": [0, 1],
    }
    assert run_ranks(Path(__file__), num_ranks=2) == [expected] * 2


def main() -> dict[str, Any]:
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    def fail(error_class: type[UserError]) -> None:
        raise error_class(f"rank {rank} has none")

    found = {
        "result of rank 0": on_main(lambda: f"from {rank}"),
        "results of all": on_every_rank(lambda: rank * 10),
        "own result": jointly(lambda: {rank}) == {rank},
        "own error, shared": _error(lambda: jointly(lambda: fail(DataError) if rank == 1 else None)),
        "error of rank 0": _error(lambda: on_main(lambda: fail(UsageError))),
        "error of rank 1": _error(lambda: on_every_rank(lambda: fail(DataError) if rank == 1 else None)),
        "errors of all": _error(lambda: on_every_rank(lambda: fail(ConfigError))),
        "still in step": on_every_rank(lambda: rank),
    }
    dist.destroy_process_group()
    return found


def _error(action: Callable[[], Any]) -> list[str]:
    with pytest.raises(UserError) as caught:
        action()
    return [type(caught.value).__name__, str(caught.value), caught.value.scope]


if __name__ == "__main__":
    print(json.dumps(main()))
