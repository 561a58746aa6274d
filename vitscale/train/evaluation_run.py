"""One evaluation in the middle of training, which all ranks leave at the same batch, whichever of them cannot or must not go on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitscale.config import UserError
from vitscale.data.types import Batch
from vitscale.train.evaluations import Evaluation
from vitscale.train.guards import Verdict


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The figures of an evaluation; None where it was left early: because of `error`, which this rank has met, of another rank's,
    or since somebody asked to stop."""

    values: dict[str, float] | None = None
    error: UserError | None = None

    def raise_error(self) -> None:
        """Raise what this rank has met, if it has."""
        if self.error is not None:
            raise self.error


class _LeftError(Exception):
    """All ranks leave the evaluation."""


def run_evaluation(evaluation: Evaluation, *, vote: Callable[[bool], Verdict], predict: Callable[[Batch], Any]) -> Evaluated:
    """Run `evaluation` as long as the ranks `vote` to go on, which they do before each batch. Collective.

    A rank that cannot read its batch says so in the vote that the others take before they predict theirs. Without that they would
    wait for it for ever: in the vote, in a sharded model, or in putting the trained weights back in place of their average. An
    error that all ranks meet alike, they meet between the same two votes.
    """

    def predict_if_all_go_on(batch: Batch) -> Any:
        if vote(False) is not Verdict.GO_ON:
            raise _LeftError
        return predict(batch)

    try:
        return Evaluated(values=evaluation.evaluator.run(predict_if_all_go_on))
    except _LeftError:
        return Evaluated()
    except UserError as error:
        vote(True)
        return Evaluated(error=error)
