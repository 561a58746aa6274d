"""Optimizer steps against plain torch, the same at every stage, on one rank and on two."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.engine.tiny import TinyObjective, batch, initial, meta_objective, micro_batches, tiny_engine
from tests.launcher import run_ranks
from vitscale.data.types import Batch
from vitscale.engine.engine import Engine
from vitscale.objectives.base import StepOutput
from vitscale.optim.groups import parameter_groups

STAGES = [0, 1, 2, 3]


class Reference:
    """The same training in plain torch."""

    def __init__(self, *, clip: float | None, weight_decay: float, betas: tuple[float, float], eps: float) -> None:
        self.objective = TinyObjective()
        parameters = dict(self.objective.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(initial(0)(name, parameter, tuple(parameter.shape)))
        groups = parameter_groups([(name, tuple(p.shape)) for name, p in parameters.items()], weight_decay=weight_decay)
        tensors = [{"params": [parameters[name] for name in g.names], "weight_decay": g.weight_decay} for g in groups]
        self.optimizer = torch.optim.AdamW(tensors, betas=betas, eps=eps, foreach=False)
        self.clip = clip

    def step(self, step: int, lr: float) -> tuple[float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self.objective(batch(step), step).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item(), norm.item()


def weights(engine: Engine) -> dict[str, Tensor]:
    return {f.name: f.values.clone().reshape(f.shape) for f in engine.store.held() if f.kind == "weight"}


@pytest.mark.parametrize(("stage", "clip"), [(0, 0.3), (1, 0.3), (2, 0.3), (3, 0.3), (0, None), (1, None), (3, 100.0)])
def test_steps_equal_plain_torch(stage: int, clip: float | None) -> None:
    settings = {"weight_decay": 0.3, "eps": 1e-6}
    engine = tiny_engine(stage=stage, clip_grad_norm=clip, beta1=0.8, beta2=0.95, **settings)
    reference = Reference(clip=clip, betas=(0.8, 0.95), **settings)
    for step in range(5):
        lr = 1e-2 / (step + 1)
        metrics = engine.train_step(micro_batches(step), step=step, lr=lr)
        loss, norm = reference.step(step, lr)
        assert metrics.loss.item() == pytest.approx(loss, rel=1e-6)
        assert metrics.grad_norm.item() == pytest.approx(norm, rel=1e-6)
    for name, parameter in reference.objective.named_parameters():
        torch.testing.assert_close(weights(engine)[name], parameter.data, rtol=1e-5, atol=1e-6)
    engine.close()


def test_weight_decay_reaches_kernels_only() -> None:
    class Flat(TinyObjective):
        def forward(self, batch: Batch, step: int) -> StepOutput:  # noqa: ARG002
            loss = sum((parameter * 0.0).sum() for parameter in self.parameters())
            assert isinstance(loss, Tensor)
            return StepOutput(loss=loss, metrics={})

    with torch.device("meta"):
        objective = Flat()
    engine = tiny_engine(stage=1, weight_decay=0.5, objective=objective)
    before = weights(engine)
    engine.train_step(micro_batches(0), step=0, lr=0.1)
    decayed = {name for name, value in weights(engine).items() if not torch.equal(value, before[name])}
    assert decayed == {name for name in before if before[name].ndim == 2}
    for name in decayed:
        torch.testing.assert_close(weights(engine)[name], before[name] * (1 - 0.1 * 0.5))
    engine.close()


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_changes_nothing_but_rounding(stage: int) -> None:
    accumulation = 4
    whole = tiny_engine(stage=stage, clip_grad_norm=0.5)
    split = tiny_engine(stage=stage, clip_grad_norm=0.5, micro_batch=8 // accumulation, accumulation=accumulation)
    for step in range(3):
        one = whole.train_step(micro_batches(step), step=step, lr=1e-2)
        many = split.train_step(micro_batches(step, accumulation=accumulation), step=step, lr=1e-2)
        torch.testing.assert_close(many.loss, one.loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(many.grad_norm, one.grad_norm, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(many.metrics, one.metrics)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], value, rtol=1e-5, atol=1e-6)
    whole.close()
    split.close()


@pytest.mark.parametrize(
    ("stage", "precision", "clip"),
    [
        (0, "fp32", None),
        (0, "fp32", 1.0),
        (1, "fp32", None),
        (2, "fp32", 1.0),
        (3, "fp32", 1.0),
        (1, "bf16", None),
        (2, "bf16", 1.0),
        (3, "bf16", 1.0),
    ],
)
def test_a_gradient_that_is_not_finite_changes_nothing(stage: int, precision: str, clip: float | None) -> None:
    engine = tiny_engine(stage=stage, precision=precision, clip_grad_norm=clip)
    engine.train_step(micro_batches(0), step=0, lr=1e-2)
    before = [f.values.clone() for f in engine.store.held()]
    poisoned = micro_batches(1)
    poisoned[0]["tokens"][3, 1, 2] = math.nan
    metrics = engine.train_step(poisoned, step=1, lr=1e-2)
    assert math.isnan(metrics.loss.item())
    assert metrics.grad_norm.item() == math.inf
    assert all(torch.equal(f.values, value) for f, value in zip(engine.store.held(), before, strict=True))
    assert engine.store.optimizer_steps() == 1
    assert math.isfinite(engine.train_step(micro_batches(2), step=2, lr=1e-2).loss.item())
    assert engine.store.optimizer_steps() == 2
    engine.close()


@pytest.mark.parametrize(
    ("stage", "precision", "accumulation", "clip"),
    [(1, "fp32", 1, None), (1, "bf16", 2, None), (2, "fp32", 4, 0.3), (2, "bf16", 1, None), (3, "fp32", 2, None), (3, "bf16", 2, 0.3)],
)
def test_offloading_changes_nothing_but_the_rounding_of_the_norm(stage: int, precision: str, accumulation: int, clip: float | None) -> None:
    settings = {"micro_batch": 8 // accumulation, "accumulation": accumulation, "clip_grad_norm": clip, "ema_decay": 0.5}
    plain, offloaded = (tiny_engine(stage=stage, precision=precision, offload_optimizer=offload, **settings) for offload in (False, True))
    for step in range(4):
        a, b = (e.train_step(micro_batches(step, accumulation=accumulation), step=step, lr=1e-2) for e in (plain, offloaded))
        torch.testing.assert_close(b.grad_norm, a.grad_norm, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(b.loss, a.loss, rtol=0.0, atol=0.0 if clip is None else 1e-6)
    for mine, theirs in zip(offloaded.store.held(), plain.store.held(), strict=True):
        # DeepSpeed adds up the norm's squares by parameter then, so what is clipped by it may differ in the last bit.
        torch.testing.assert_close(mine.values, theirs.values, rtol=0.0, atol=0.0 if clip is None else 1e-6)
    plain.close()
    offloaded.close()


@pytest.mark.parametrize("stage", [1, 3])
def test_runs_repeat_bit_for_bit_and_draws_follow_the_step(stage: int) -> None:
    class Noisy(TinyObjective):
        def predict(self, batch: Batch) -> Tensor:
            return F.dropout(super().predict(batch), training=self.training)

    def losses(steps: range) -> list[float]:
        with torch.device("meta"):
            objective = Noisy()
        engine = tiny_engine(stage=stage, objective=objective)
        torch.rand(len(steps))  # whatever was drawn before does not matter
        results = [engine.train_step(micro_batches(0), step=step, lr=0.0).loss.item() for step in steps]
        engine.close()
        return results

    first = losses(range(4))
    assert losses(range(4)) == first
    assert losses(range(2, 4)) == first[2:]
    assert len(set(first)) == 4


def test_after_step_and_evaluation_mode() -> None:
    objective = meta_objective()
    engine = tiny_engine(stage=3, objective=objective)
    engine.train_step(micro_batches(0), step=11, lr=1e-2)
    assert objective.steps_seen == [11]
    modes: list[bool] = []
    objective.backbone.blocks[0].register_forward_pre_hook(lambda module, _: modes.append(module.training))
    assert not engine.predict(batch(0)).requires_grad
    engine.train_step(micro_batches(1), step=12, lr=1e-2)
    assert modes == [False, True]
    engine.close()


def test_peak_memory_is_plausible() -> None:
    engine = tiny_engine(stage=0)
    assert 50e6 < engine.peak_memory_bytes() < 50e9
    engine.close()


def test_a_wrong_number_of_micro_batches_is_our_mistake() -> None:
    engine = tiny_engine(stage=0)
    with pytest.raises(AssertionError, match="2 micro-batches, not 1"):
        engine.train_step(micro_batches(0, accumulation=2), step=0, lr=1e-2)
    engine.close()


def test_stage_3_leaves_linear_alone() -> None:
    linear = F.linear
    engine = tiny_engine(stage=3)
    engine.train_step(micro_batches(0), step=0, lr=1e-2)
    assert F.linear is linear
    engine.close()


@pytest.fixture(scope="module")
def ranks() -> dict[str, Any]:
    """What two ranks report; rank 1 says the same."""
    reports = run_ranks(Path(__file__).with_name("ranks_engine.py"), timeout_s=280)
    assert reports[0] == reports[1]
    report: dict[str, Any] = reports[0]
    return report


@pytest.mark.dist
def test_two_ranks_start_equal_and_train_equal_at_every_stage(ranks: dict[str, Any]) -> None:
    runs = ranks["train"]
    assert len(runs) == 7
    assert len({run["first_hash"] for run in runs.values()}) == 1
    reference = Reference(clip=1.0, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8)
    expected = [reference.step(step, 1e-2) for step in range(4)]
    for name, run in runs.items():
        tolerance = 1e-6 if name.endswith("fp32") else 1e-2
        assert run["losses"] == pytest.approx([loss for loss, _ in expected], rel=tolerance), name
        assert run["norms"] == pytest.approx([norm for _, norm in expected], rel=tolerance), name
        assert run["scores"] == pytest.approx(runs["0 fp32"]["scores"], rel=tolerance), name
        assert run["averaged"] == pytest.approx(runs["0 fp32"]["averaged"], rel=tolerance), name
        assert len(set(run["losses"])) == 4


@pytest.mark.dist
def test_two_ranks_repeat_bit_for_bit(ranks: dict[str, Any]) -> None:
    assert ranks["again"] == ranks["train"]["3 fp32"]


@pytest.mark.dist
def test_large_parameters_train_as_small_ones_do(ranks: dict[str, Any]) -> None:
    sharded = ranks["sharded"]
    assert sharded == {name: ranks["train"][name] for name in ("3 fp32", "3 bf16")}, "gathered for use and recomputed, or always gathered"


@pytest.mark.dist
def test_accumulation_on_two_ranks_communicates_no_more_than_it_must(ranks: dict[str, Any]) -> None:
    assert (len(ranks["accumulation"]), len(ranks["accumulation_bf16"])) == (12, 6)
    for case, run in ranks["accumulation"].items():
        stage, num = int(case[0]), int(case[-1])
        once = ranks["accumulation"][f"{stage} x1"]
        assert run["losses"] == pytest.approx(once["losses"], rel=1e-6), case
        assert run["norms"] == pytest.approx(once["norms"], rel=1e-6), case
        # Stages 2 and 3 keep no whole gradient, so every micro-batch's is reduced at once.
        assert run["reduced"] == [volume * (num if stage >= 2 else 1) for volume in once["reduced"]], case
    for case, run in ranks["accumulation_bf16"].items():
        assert run["losses"] == pytest.approx(ranks["accumulation_bf16"][f"{case[0]} x1"]["losses"], rel=5e-3), case


@pytest.mark.dist
def test_one_ranks_nan_stops_the_update_on_all(ranks: dict[str, Any]) -> None:
    assert len(ranks["not_finite"]) == 13
    skipped = {"norm": math.inf, "changed": [], "steps": 1, "same_scores": True}
    faults = ("_nan_in_the_batch", "_poisoned", "_one_infinite_element")
    for name, result in ranks["not_finite"].items():
        assert result == {**dict.fromkeys(faults, skipped), "goes on": True}, name


@pytest.mark.dist
def test_an_offloaded_optimizer_computes_the_same(ranks: dict[str, Any]) -> None:
    assert len(ranks["offloaded"]) == 9
    for name, run in ranks["offloaded"].items():
        expected = ranks["unclipped"][name]
        for figure in ("losses", "last_hash", "scores", "averaged"):
            assert run[figure] == expected[figure], (name, figure)
        assert run["norms"] == pytest.approx(expected["norms"], rel=1e-6), name


@pytest.mark.dist
def test_two_ranks_at_stage_3_leave_linear_alone(ranks: dict[str, Any]) -> None:
    assert ranks["linear_untouched"]
