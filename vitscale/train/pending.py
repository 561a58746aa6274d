"""Step results that have not left the device yet: kept as device tensors until a step that reports."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitscale.dist.collectives import all_reduce_sum
from vitscale.dist.ranks import current_ranks
from vitscale.engine.engine import StepMetrics


@dataclass(frozen=True, kw_only=True)
class StepSummary:
    """The steps since the last report: `losses[i]` is the loss of step `first_step + i` over all ranks (steps count from 1),
    `grad_norms[i]` its gradient norm before clipping, `values` the means of every metric over all ranks and those of these
    steps whose gradient was finite: the engine skips the others. Without such a step `values` is empty."""

    first_step: int
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    values: dict[str, float]


class PendingSteps:
    """Collects each step's device scalars; one all-reduce and one copy to the host per report."""

    def __init__(self, *, steps_done: int) -> None:
        self._next_step = steps_done + 1
        self._steps: list[StepMetrics] = []

    def add(self, metrics: StepMetrics) -> None:
        """Keep one step's results, on the device."""
        self._steps.append(metrics)

    def collect(self) -> StepSummary:
        """Average over the ranks and fetch. All ranks must call this: the reduction is collective."""
        steps, self._steps = self._steps, []
        names = list(steps[0].metrics)
        rows = torch.stack([torch.stack([_scalar(step.loss), *(_scalar(step.metrics[name]) for name in names)]) for step in steps])
        # The sync point: everything above stayed on the device.
        means = (all_reduce_sum(rows) / current_ranks().world_size).cpu()
        norms = torch.stack([_scalar(step.grad_norm) for step in steps]).cpu()
        first, self._next_step = self._next_step, self._next_step + len(steps)
        taken = norms.isfinite()
        values = _means(names, rows=means[taken], norms=norms[taken]) if taken.any() else {}
        return StepSummary(first_step=first, losses=tuple(means[:, 0].tolist()), grad_norms=tuple(norms.tolist()), values=values)


def _means(names: list[str], *, rows: Tensor, norms: Tensor) -> dict[str, float]:
    values = {"loss": rows[:, 0].mean().item(), "loss_max": rows[:, 0].max().item(), "grad_norm": norms.mean().item()}
    return values | {name: rows[:, 1 + i].mean().item() for i, name in enumerate(names)}


def _scalar(value: Tensor) -> Tensor:
    # Double: a mean over many ranks and steps must not depend on their number in the last digits that are shown.
    return value.detach().double().reshape(())
