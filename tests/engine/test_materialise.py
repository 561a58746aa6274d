"""Every stage and precision starts from the same fp32 masters, and no rank ever holds the whole model for it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.engine.tiny import TinyObjective, batch, initial, meta_objective, tiny_engine
from tests.launcher import run_ranks
from vitscale.engine.materialise import materialise

SCRIPT = Path(__file__).with_name("ranks_start.py")


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
)
def test_masters_are_the_initial_values_exactly(stage: int, precision: str) -> None:
    engine = tiny_engine(stage=stage, precision=precision, seed=7)
    draw = initial(7)
    parameters = dict(TinyObjective().named_parameters())
    weights = {f.name: f for f in engine.store.held() if f.kind == "weight"}
    assert weights.keys() == parameters.keys()
    for name, fragment in weights.items():
        assert torch.equal(fragment.values.reshape(fragment.shape), draw(name, parameters[name], fragment.shape))
    engine.close()


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (2, "bf16"), (3, "bf16")])
def test_forward_reads_the_initial_values(stage: int, precision: str) -> None:
    engine = tiny_engine(stage=stage, precision=precision, seed=7)
    oracle = TinyObjective()
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            parameter.copy_(initial(7)(name, parameter, tuple(parameter.shape)))
        scores = engine.predict(batch(0))
        expected = oracle.to(scores.dtype).predict(batch(0))
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-6 if precision == "fp32" else 1e-2)
    engine.close()


def test_shared_parameters_stay_shared() -> None:
    objective = meta_objective()
    objective.backbone.blocks[1].fc.weight = objective.backbone.blocks[0].fc.weight
    materialise(objective, zero_stage=1, dtype=torch.float32, device=torch.device("cpu"), config={})
    assert objective.backbone.blocks[1].fc.weight is objective.backbone.blocks[0].fc.weight
    assert all(parameter.device.type == "cpu" and hasattr(parameter, "init") for parameter in objective.parameters())


def test_storage_has_the_type_of_the_computation() -> None:
    objective = meta_objective()
    materialise(objective, zero_stage=1, dtype=torch.bfloat16, device=torch.device("cpu"), config={})
    assert {parameter.dtype for parameter in objective.parameters()} == {torch.bfloat16}


def test_buffers_are_our_mistake() -> None:
    objective = nn.BatchNorm1d(2, device="meta")
    with pytest.raises(AssertionError, match="no buffers"):
        materialise(objective, zero_stage=1, dtype=torch.float32, device=torch.device("cpu"), config={})


def test_a_module_off_the_meta_device_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="not on the meta device"):
        materialise(TinyObjective(), zero_stage=1, dtype=torch.float32, device=torch.device("cpu"), config={})


@pytest.mark.dist
def test_stage_3_never_holds_a_whole_model() -> None:
    num_ranks = 4
    for grown in run_ranks(SCRIPT, num_ranks=num_ranks):
        assert grown["model"] > 200e6
        shard, spare = grown["model"] / num_ranks, 0.15 * grown["model"]  # to spare for one module, and what libraries load meanwhile
        assert 0.9 * shard < grown["materialised"] < shard + spare, grown
        assert grown["started"] < 5 * shard + spare, grown  # weights, masters, two moments and gradients
