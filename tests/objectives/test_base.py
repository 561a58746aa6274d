import pytest
import torch

from vitscale.data.types import Batch
from vitscale.objectives import OBJECTIVES, Objective, StepOutput


class Constant(Objective):
    batch_keys = frozenset({"image"})

    def forward(self, batch: Batch, step: int) -> StepOutput:
        return StepOutput(loss=batch["image"].sum() * step, metrics={})


def test_objective_that_predicts_nothing_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Constant has nothing to predict"):
        Constant().predict({})


def test_after_step_defaults_to_nothing() -> None:
    objective = Constant()
    objective.after_step(3)
    assert objective({"image": torch.ones(2)}, 3).loss == 6


def test_table_maps_kinds_to_configurations() -> None:
    assert [(kind, config.__name__) for kind, config in OBJECTIVES.items()] == [("supervised", "SupervisedConfig")]
