"""An evaluation within a run: all ranks leave it together, whoever cannot read on and whenever somebody asks for a stop."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.launcher import run_ranks
from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, events, tiny_config
from vitscale import api
from vitscale.config import ConfigError, DataError, StopRequested, UserError
from vitscale.data.types import Batch
from vitscale.train.evaluation_run import Evaluated, run_evaluation
from vitscale.train.evaluations import Evaluation
from vitscale.train.guards import Verdict


class Evaluator:
    """Predicts three batches; raises `unreadable` in place of the second, or `at_end` behind the last."""

    def __init__(self, *, unreadable: UserError | None = None, at_end: UserError | None = None) -> None:
        self._unreadable = unreadable
        self._at_end = at_end

    def run(self, predict: Callable[[Batch], torch.Tensor]) -> dict[str, float]:
        for number in range(3):
            if number == 1 and self._unreadable is not None:
                raise self._unreadable
            predict({})
        if self._at_end is not None:
            raise self._at_end
        return {"top1": 0.5}


def run(evaluator: Any, verdicts: Sequence[Verdict]) -> tuple[Evaluated, list[bool], int]:
    """What came of it, how this rank voted, and how many batches it predicted."""
    votes: list[bool] = []
    predicted: list[Batch] = []

    def vote(failed: bool) -> Verdict:
        votes.append(failed)
        return verdicts[len(votes) - 1]

    def predict(batch: Batch) -> torch.Tensor:
        predicted.append(batch)
        return torch.zeros(1)

    found = run_evaluation(Evaluation(name="e", evaluator=evaluator, weights="model", every_steps=None), vote=vote, predict=predict)
    return found, votes, len(predicted)


def test_it_runs_to_its_end_where_all_go_on() -> None:
    assert run(Evaluator(), [Verdict.GO_ON] * 3) == (Evaluated(values={"top1": 0.5}), [False] * 3, 3)


@pytest.mark.parametrize("verdict", [Verdict.STOP, Verdict.FAIL])
def test_it_is_left_before_the_batch_that_the_others_do_not_predict(verdict: Verdict) -> None:
    assert run(Evaluator(), [Verdict.GO_ON, verdict]) == (Evaluated(), [False, False], 1)


def test_who_cannot_read_votes_in_the_place_of_that_batch() -> None:
    error = DataError("torn")
    found, votes, predicted = run(Evaluator(unreadable=error), [Verdict.GO_ON, Verdict.FAIL])
    assert (found.values, found.error, votes, predicted) == (None, error, [False, True], 1)
    with pytest.raises(DataError, match="torn"):
        found.raise_error()


def test_what_all_find_at_the_end_they_all_vote_on() -> None:
    found, votes, predicted = run(Evaluator(at_end=ConfigError("few outputs")), [Verdict.GO_ON] * 3 + [Verdict.FAIL])
    assert (str(found.error), votes, predicted) == ("few outputs", [False, False, False, True], 3)


@pytest.mark.parametrize(("asked_at", "log_every"), [(3, 1), (6, 2)], ids=["in the middle", "at the end"])
def test_a_stop_does_not_wait_for_an_evaluation_and_loses_nothing(tmp_path: Path, asked_at: int, log_every: int) -> None:
    test = f"evals.test={{kind: classification, path: {tmp_path}/shards, every_steps: 3, batch_size: 8}}"
    options = (test, "checkpoint.every_steps=100", f"train.log_every_steps={log_every}")
    whole, stopped = tiny_config(tmp_path, "name=whole", *options), tiny_config(tmp_path, *options)
    api.train(whole)
    asked: list[int] = []

    def stop_when() -> bool:
        # After each step, and before each of the evaluation's 12 batches: of the first one, due at step 3, in the fourth.
        asked.append(1)
        return len(asked) == (7 if asked_at == 3 else 22)

    with pytest.raises(StopRequested, match=f"after step {asked_at} of 6, everything saved"):
        api.train(stopped, stop_when=stop_when)
    records = [json.loads(line) for line in (stopped.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "eval/test/top1" in record] == ([] if asked_at == 3 else [3])
    assert [event["step"] for event in events(stopped.run_dir, "checkpoint")] == [asked_at]
    result = api.train(stopped)
    assert result.values["eval/test/top1"] == api.evaluate(whole)["test"]["top1"]
    assert_equal_tensors(checkpoint_tensors(stopped.run_dir, step=6), checkpoint_tensors(whole.run_dir, step=6))


@pytest.mark.dist
def test_a_batch_that_one_rank_cannot_read_ends_all_ranks_with_its_error(tmp_path: Path) -> None:
    """In an evaluation of the average, from whose weights the ranks must change back together."""
    test = f"evals.test={{kind: classification, path: {tmp_path}/shards, every_steps: 2, batch_size: 8, weights: ema}}"
    tiny_config(tmp_path)  # packs the data
    answers = run_ranks(Path(__file__).with_name("rank_unreadable_evaluation.py"), tmp_path, test, timeout_s=90)
    assert [answer["error"] for answer in answers] == ["DataError"] * 2
    assert all("rank 1 cannot read it" in answer["message"] for answer in answers)
