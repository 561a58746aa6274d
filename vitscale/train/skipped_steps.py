"""Steps without a finite gradient: which of those since the last report were skipped, and when that ends the run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitscale.train.guards import NonFinite
from vitscale.train.pending import StepSummary

_SHOWN_SAMPLES = 16


@dataclass(frozen=True, kw_only=True)
class SkippedSteps:
    """`steps` were skipped on all ranks, `in_a_row` of them at the end of what was judged and before, without a step that was
    taken in between. `fatal` is why the run cannot go on, if it cannot."""

    steps: tuple[int, ...]
    in_a_row: int
    fatal: NonFinite | None


class SkipGuard:
    """Judges the steps of a run, report by report: more than `max_in_a_row` skipped ones, one after another, end it.

    `in_a_row` are those at the end of what the run goes on from: a restart is no way around the limit.
    """

    def __init__(self, *, max_in_a_row: int, in_a_row: int = 0) -> None:
        self._max_in_a_row = max_in_a_row
        self.in_a_row = in_a_row
        """Skipped at the end of what was judged so far."""

    def judge(self, summary: StepSummary) -> SkippedSteps:
        """Judge the steps since the last report. Equal on all ranks."""
        found = find_skipped_steps(summary, in_a_row=self.in_a_row, max_in_a_row=self._max_in_a_row)
        self.in_a_row = found.in_a_row
        return found


def find_skipped_steps(summary: StepSummary, *, in_a_row: int, max_in_a_row: int) -> SkippedSteps:
    """Judge the steps since the last report, before which the last `in_a_row` steps were skipped.

    A step whose gradient norm is not finite was skipped by the engine and left no trace in the weights; more than `max_in_a_row`
    of them, one after another, end the run. A loss that is not finite ends it at once where the gradient was: then the weights
    have moved by something that nobody can vouch for. All ranks have the same summary, so they judge alike.
    """
    skipped: list[int] = []
    for step, (loss, norm) in enumerate(zip(summary.losses, summary.grad_norms, strict=True), start=summary.first_step):
        fatal = None
        if not math.isfinite(norm):
            skipped.append(step)
            in_a_row += 1
            if in_a_row > max_in_a_row:
                fatal = NonFinite(step=step, what=_too_many(in_a_row, max_in_a_row=max_in_a_row))
        elif not math.isfinite(loss):
            fatal = NonFinite(step=step, what=f"the loss is {loss}, though its gradient is finite and has been applied")
        else:
            in_a_row = 0
        if fatal is not None:
            return SkippedSteps(steps=tuple(skipped), in_a_row=in_a_row, fatal=fatal)
    return SkippedSteps(steps=tuple(skipped), in_a_row=in_a_row, fatal=None)


def skipped_message(step: int, *, sample_ids: Sequence[int]) -> str:
    """What the ledger says of one skipped step."""
    shown = ", ".join(str(i) for i in sample_ids[:_SHOWN_SAMPLES]) + (", ..." if len(sample_ids) > _SHOWN_SAMPLES else "")
    return (
        f"step {step} was skipped on all ranks: its gradient is not finite. Weights, moments and averages are as before it."
        f" The sample ids of its batch: {shown or 'unknown'}"
    )


def _too_many(in_a_row: int, *, max_in_a_row: int) -> str:
    if in_a_row == 1:
        return "the gradient is not finite, and watch.max_skipped_steps is 0"
    return f"the gradient is not finite, in the last of {in_a_row} steps in a row; watch.max_skipped_steps allows {max_in_a_row}"
