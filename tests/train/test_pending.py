"""Step results: means over steps, each loss kept, nothing left behind."""

import math

import torch

from vitscale.engine.engine import StepMetrics
from vitscale.train.pending import PendingSteps


def metrics(loss: float, top1: float, norm: float) -> StepMetrics:
    return StepMetrics(loss=torch.tensor(loss), metrics={"train_top1": torch.tensor(top1)}, grad_norm=torch.tensor(norm))


def test_collect_averages_and_numbers_the_steps() -> None:
    pending = PendingSteps(steps_done=10)
    pending.add(metrics(1.0, 0.5, 2.0))
    pending.add(metrics(3.0, 0.7, 4.0))
    summary = pending.collect()
    assert summary.first_step == 11
    assert summary.losses == (1.0, 3.0)
    assert summary.grad_norms == (2.0, 4.0)
    assert summary.values["loss"] == 2.0
    assert summary.values["loss_max"] == 3.0
    assert summary.values["grad_norm"] == 3.0
    assert abs(summary.values["train_top1"] - 0.6) < 1e-6
    pending.add(metrics(5.0, 0.5, 2.0))
    assert pending.collect().first_step == 13


def test_means_leave_out_what_was_skipped() -> None:
    pending = PendingSteps(steps_done=0)
    pending.add(metrics(1.0, 0.5, 2.0))
    pending.add(metrics(math.nan, math.nan, math.inf))
    pending.add(metrics(3.0, 0.5, 4.0))
    summary = pending.collect()
    assert summary.values == {"loss": 2.0, "loss_max": 3.0, "grad_norm": 3.0, "train_top1": 0.5}
    assert math.isnan(summary.losses[1])
    assert summary.grad_norms == (2.0, math.inf, 4.0)
    pending.add(metrics(math.nan, math.nan, math.inf))
    assert pending.collect().values == {}
