"""Comparisons: what is accepted, what is refused, what is not run; NaN is never accepted."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.oracles import random_classifier
from vitscale.config import CheckpointError
from vitscale.models import ViTConfig
from vitscale.objectives import SupervisedConfig
from vitscale.train.equality import Comparison, Foreign, compare
from vitscale.train.stored_model import StoredModel
from vitscale.weights.forms import Sizes
from vitscale.weights.installed import NotUsable
from vitscale.weights.names import plan_conversions

MODEL = ViTConfig(image_size=8, patch_size=4, width=16, depth=2, num_heads=2, num_channels=1)
STORED = StoredModel(model=MODEL, objective=SupervisedConfig(num_classes=4))
WHOLE = random_classifier(MODEL, num_classes=4)
WEIGHTS = {name: value.detach() for name, value in WHOLE.named_parameters()}


def foreign(*, shift: float = 0.0, library_shift: float | None = 0.0) -> Foreign:
    state: dict[str, Tensor] = {}
    shapes = {name: tuple(value.shape) for name, value in WEIGHTS.items()}
    for conversion in plan_conversions(shapes, layout="timm", sizes=Sizes(num_channels=1, num_heads=2)):
        state |= conversion.to_theirs([WEIGHTS[name] for name in conversion.ours])
    state["head.bias"] = state["head.bias"] + shift

    def load() -> object:
        if library_shift is None:
            raise NotUsable("it is not installed")
        return lambda image: WHOLE.head(WHOLE.backbone(image).pooled_BD).detach() + library_shift

    return Foreign(
        layout="timm",
        model=MODEL,
        shapes={name: tuple(value.shape) for name, value in state.items()},
        read=state.__getitem__,
        library="timm",
        load=load,  # type: ignore[arg-type]
    )


def compared(found: Foreign, *, tolerance: float = 1e-5, max_memory_bytes: int = 1 << 30) -> tuple[Comparison, ...]:
    return compare(STORED, read=WEIGHTS.__getitem__, foreign=found, max_memory_bytes=max_memory_bytes, tolerance=tolerance, where="file")


def test_equal_models_are_accepted_with_their_differences() -> None:
    formulas, library = compared(foreign())
    assert formulas.max_abs_delta <= 1e-6
    assert library.max_abs_delta == 0
    assert library.describe().startswith("against timm: max |delta logits| = 0, largest |logit| ")


@pytest.mark.parametrize(
    ("shift", "library_shift", "message"), [(0.01, 0.0, "the formulas of timm"), (0.0, 0.01, "against timm"), (math.nan, 0.0, "nan")]
)
def test_a_difference_is_refused_unless_it_is_accepted(shift: float, library_shift: float, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        compared(foreign(shift=shift, library_shift=library_shift))
    if not math.isnan(shift):
        assert len(compared(foreign(shift=shift, library_shift=library_shift), tolerance=0.1)) == 2


def test_a_library_that_is_missing_or_too_large_is_told() -> None:
    assert compared(foreign(library_shift=None))[1].describe() == "against timm: not run: it is not installed"
    assert "more than --max-memory" in compared(foreign(), max_memory_bytes=1000)[1].describe()
    assert torch.isfinite(torch.tensor(compared(foreign(), max_memory_bytes=1000)[0].max_abs_delta))


def test_a_library_whose_model_cannot_be_imported_is_told() -> None:
    """transformers and timm import their parts late, and raise this where torchvision does not fit torch."""

    def load() -> object:
        raise ModuleNotFoundError("Could not import module 'ViTForImageClassification'.\nAnd more.")

    found = compared(replace(foreign(), load=load))[1]  # type: ignore[arg-type]
    assert found.skipped == "its model cannot be imported here (Could not import module 'ViTForImageClassification'.)"


def test_small_logits_are_held_to_their_own_size() -> None:
    assert not Comparison(against="x", max_abs_delta=1e-6, max_abs_output=0.01).within(1e-5)
    assert Comparison(against="x", max_abs_delta=0.0, max_abs_output=0.0).within(math.inf)


def test_behind_a_head_of_zeros_the_features_are_compared() -> None:
    weights = WEIGHTS | {name: torch.zeros_like(WEIGHTS[name]) for name in ("head.fc.weight", "head.fc.bias")}
    given = foreign()
    state = {name: torch.zeros(shape) if name.startswith("head.") else given.read(name) for name, shape in given.shapes.items()}

    def features(scale: float) -> Comparison:
        read = (state | {"blocks.1.norm2.weight": scale * state["blocks.1.norm2.weight"]}).__getitem__
        found = replace(given, read=read, load=lambda: lambda image: torch.zeros(len(image), 4))
        return compare(STORED, read=weights.__getitem__, foreign=found, max_memory_bytes=1 << 30, tolerance=1e-5, where="file")[-1]

    assert features(1.0).describe().startswith("against the formulas of timm: max |delta features| = ")
    with pytest.raises(CheckpointError, match=r"max \|delta features\|"):
        features(1.01)
