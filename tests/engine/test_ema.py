"""The moving average against torch's own, and the exact exchange of weights and average."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.engine.tiny import TinyObjective, batch, micro_batches, tiny_engine
from vitscale.engine import ema
from vitscale.engine.ema import WeightAverage
from vitscale.engine.engine import Engine

DECAY = 0.7


def state(engine: Engine, kind: str) -> dict[str, torch.Tensor]:
    """Every parameter's whole tensor of a kind (one rank holds everything)."""
    return {f.name: f.values.clone().reshape(f.shape) for f in engine.store.held() if f.kind == kind}


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (3, "fp32"), (2, "bf16")])
def test_average_equals_torchs(stage: int, precision: str) -> None:
    engine = tiny_engine(stage=stage, precision=precision, ema_decay=DECAY)
    live = TinyObjective()
    live.load_state_dict(state(engine, "weight"))
    oracle = AveragedModel(live, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    oracle.update_parameters(live)  # its first call copies
    for step in range(4):
        engine.train_step(micro_batches(step), step=step, lr=1e-2)
        live.load_state_dict(state(engine, "weight"))
        oracle.update_parameters(live)
    averages = state(engine, "ema")
    for name, parameter in oracle.module.named_parameters():
        torch.testing.assert_close(averages[name], parameter.data, rtol=1e-6, atol=1e-7)
        assert not torch.equal(averages[name], dict(live.named_parameters())[name].data)
    engine.close()


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (3, "fp32"), (1, "bf16"), (3, "bf16")])
def test_prediction_with_the_average_leaves_no_trace(stage: int, precision: str) -> None:
    engine = tiny_engine(stage=stage, precision=precision, ema_decay=DECAY)
    untouched = tiny_engine(stage=stage, precision=precision, ema_decay=DECAY)
    for step in range(2):
        engine.train_step(micro_batches(step), step=step, lr=1e-1)
        untouched.train_step(micro_batches(step), step=step, lr=1e-1)
    before, averages = state(engine, "weight"), state(engine, "ema")
    plain = engine.predict(batch(9))
    with engine.weights("ema"):
        averaged = engine.predict(batch(9))
        assert all(torch.equal(value, averages[name]) for name, value in state(engine, "weight").items())
    with engine.weights("model"):
        assert torch.equal(engine.predict(batch(9)), plain)
    expected = TinyObjective()
    expected.load_state_dict(averages)
    with torch.no_grad():
        oracle = expected.to(plain.dtype).predict(batch(9))
    torch.testing.assert_close(averaged, oracle, rtol=1e-5, atol=1e-6 if precision == "fp32" else 2e-2)
    assert not torch.equal(averaged, plain)
    assert all(torch.equal(value, before[name]) for name, value in state(engine, "weight").items())
    following = [e.train_step(micro_batches(2), step=2, lr=1e-1).loss for e in (engine, untouched)]
    assert torch.equal(*following)
    engine.close()
    untouched.close()


def test_swap_survives_an_error_and_works_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ema, "_SWAP_ELEMENTS", 3)
    weight = torch.randn(10)
    average = WeightAverage([weight], decay=0.5)
    weight.add_(1.0)
    before, mean = weight.clone(), average.averages[0].clone()
    refreshed: list[torch.Tensor] = []
    with pytest.raises(RuntimeError, match="evaluation"), average.in_place_of_weights(lambda: refreshed.append(weight.clone())):
        raise RuntimeError("evaluation")
    assert torch.equal(weight, before)
    assert torch.equal(average.averages[0], mean)
    assert torch.equal(refreshed[0], mean)
    assert torch.equal(refreshed[1], before)


def test_no_average_was_asked_for() -> None:
    engine = tiny_engine(stage=0)
    assert {f.kind for f in engine.store.held()} == {"weight", "exp_avg", "exp_avg_sq"}
    with pytest.raises(AssertionError, match="no moving average"):
        engine.weights("ema")
    engine.close()


def test_oracle_is_not_trivial() -> None:
    weights = nn.Parameter(torch.zeros(2)).data
    average = WeightAverage([weights], decay=0.25)
    weights.fill_(1.0)
    average.update()
    assert average.averages[0].tolist() == [0.75, 0.75]


@pytest.mark.parametrize("decay", [0.25, 0.999])
def test_a_skipped_step_leaves_no_trace_wherever_that_is_known(decay: float) -> None:
    weights = [torch.randn(7), torch.randn(3)]
    averages = {where: WeightAverage(weights, decay=decay) for where in ("host", "device")}
    for weight in weights:
        weight.add_(1.0)
    before = [value.clone() for value in averages["host"].averages]
    averages["host"].update(is_taken=False)
    averages["device"].update(is_taken=torch.tensor(False))
    for average in averages.values():
        assert all(torch.equal(value, old) for value, old in zip(average.averages, before, strict=True))
    averages["host"].update(is_taken=True)
    averages["device"].update(is_taken=torch.tensor(True))
    for mine, theirs, old in zip(averages["host"].averages, averages["device"].averages, before, strict=True):
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, old)
