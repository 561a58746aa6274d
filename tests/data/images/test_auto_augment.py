import math
from collections import Counter
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from pydantic import ValidationError
from timm.data import auto_augment as timm_augment
from torchvision.transforms import TrivialAugmentWide

from vitscale.data.images.augment_ops import OPERATIONS, Operation, apply_operations
from vitscale.data.images.auto_augment import (
    _RAND_AUGMENT,
    _TRIVIAL_AUGMENT,
    RandAugmentConfig,
    ThreeAugmentConfig,
    TrivialAugmentConfig,
    _Strength,
)
from vitscale.dist.seeding import CounterRng

SIZE = 224
NAMES = {
    "AutoContrast": "autocontrast",
    "Equalize": "equalise",
    "Invert": "invert",
    "Rotate": "rotate",
    "Posterize": "posterise",
    "Solarize": "solarise",
    "SolarizeAdd": "solarise_add",
    "Color": "saturation",
    "Contrast": "contrast",
    "Brightness": "brightness",
    "Sharpness": "sharpness",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateXRel": "translate_x",
    "TranslateYRel": "translate_y",
    "TranslateX": "translate_x",
    "TranslateY": "translate_y",
    "Identity": "",
}
"""Our name of what timm and torchvision call an operation."""


def draws(policy: Any, count: int, *, seed: int = 0) -> list[list[Operation]]:
    return [policy.draw(CounterRng(seed, i), image_size=SIZE) for i in range(count)]


def is_even(counts: Counter[str], *, kinds: int) -> bool:
    """Whether chi-square finds the counts uniform over `kinds` at p = 0.001 (Wilson and Hilferty's approximation)."""
    total, degrees = sum(counts.values()), kinds - 1
    statistic = sum((found - total / kinds) ** 2 / (total / kinds) for found in counts.values())
    statistic += (kinds - len(counts)) * total / kinds
    return statistic < degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


def is_like(ours: list[float], theirs: list[float]) -> bool:
    """Whether Kolmogorov and Smirnov find one distribution at p = 0.001."""
    points = np.sort(np.concatenate([ours, theirs]))
    one, other = (np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (ours, theirs))
    return float(np.abs(one - other).max()) < 1.95 * math.sqrt((len(ours) + len(theirs)) / (len(ours) * len(theirs)))


def test_rand_augment_has_timms_operations() -> None:
    assert [name for name, _ in _RAND_AUGMENT] == [NAMES[name] for name in timm_augment._RAND_TRANSFORMS]
    assert all(name in OPERATIONS for name, _ in _RAND_AUGMENT)


@pytest.mark.parametrize("severity", ["increasing", "mixed"])
def test_rand_augments_values_are_timms_at_every_level(severity: str) -> None:
    names = timm_augment._RAND_INCREASING_TRANSFORMS if severity == "increasing" else timm_augment._RAND_TRANSFORMS
    for (_, value_of), theirs in zip(_RAND_AUGMENT, names, strict=True):
        to_arguments = timm_augment.LEVEL_TO_ARG[theirs]
        for level in (0.0, 0.05, 0.49, 0.9, 0.9321, 1.0):
            found = set()
            for seed in range(8):  # some draw a sign
                strength = _Strength(level=level, is_increasing=severity == "increasing", image_size=SIZE, rng=CounterRng(seed))
                found.add(round(value_of(strength), 9))
            expected = {0.0}
            if to_arguments is not None:
                scale = SIZE if theirs.endswith("Rel") else 1
                expected = {round(to_arguments(10 * level, {})[0] * scale, 9) for _ in range(40)}
            assert found == expected, (theirs, level)


def test_rand_augment_draws_evenly_and_with_its_probability() -> None:
    drawn = draws(RandAugmentConfig(magnitude=9, num_ops=3, probability=0.4), 3000)
    counts = Counter(operation.name for operations in drawn for operation in operations)
    assert is_even(counts, kinds=15)
    numbers = Counter(len(operations) for operations in drawn)
    for number, share in enumerate((0.216, 0.432, 0.288, 0.064)):
        assert numbers[number] / 3000 == pytest.approx(share, abs=0.03)
    resampling = Counter(operation.resampling for operations in drawn for operation in operations)
    assert is_even(resampling, kinds=2)
    assert {operation.fill for operations in drawn for operation in operations} == {128}


def test_rand_augments_strength_is_distributed_as_timms() -> None:
    policy = RandAugmentConfig(magnitude=9, magnitude_std=0.5, probability=1.0)
    ours = [abs(op.value) for operations in draws(policy, 4000) for op in operations if op.name in ("shear_x", "shear_y")]
    timm_augment.random.seed(0)
    theirs: list[float] = []
    operation = timm_augment.AugmentOp("ShearX", prob=1.0, magnitude=9, hparams={"magnitude_std": 0.5})
    operation.aug_fn = lambda image, factor, **settings: theirs.append(abs(factor))  # noqa: ARG005
    for _ in range(4000):
        operation(None)
    assert is_like(ours, theirs)
    assert max(ours) == max(theirs) == pytest.approx(0.3)


def test_without_a_deviation_every_strength_is_the_same() -> None:
    policy = RandAugmentConfig(magnitude=5, probability=1.0, resampling="bicubic")
    drawn = [op for operations in draws(policy, 500) for op in operations]
    assert {abs(op.value) for op in drawn if op.name == "rotate"} == {15.0}
    assert {op.value for op in drawn if op.name == "solarise_add"} == {55.0}
    assert {op.resampling for op in drawn} == {"bicubic"}


def test_trivial_augment_is_torchvisions() -> None:
    space = TrivialAugmentWide()._augmentation_space(31)
    assert [name for name, _, _ in _TRIVIAL_AUGMENT] == [NAMES[name] for name in space]
    factors = ("Brightness", "Color", "Contrast", "Sharpness")
    for (name, value_of, is_signed), (theirs, (magnitudes, signed)) in zip(_TRIVIAL_AUGMENT, space.items(), strict=True):
        assert is_signed == signed, name
        for sign in (1.0, -1.0) if signed else (1.0,):
            # Their float32 steps miss a whole number of pixels by the last bit.
            expected = np.round(torch.atleast_1d(magnitudes).double().numpy() * sign, 4)
            expected = 1 + expected if theirs in factors else expected.astype(int) if theirs.startswith("Translate") else expected
            ours = [value_of(strength / 30, sign) for strength in range(31)]
            np.testing.assert_allclose(ours, np.broadcast_to(expected, 31), atol=1e-4, err_msg=theirs)


def test_trivial_augment_draws_evenly() -> None:
    drawn = draws(TrivialAugmentConfig(), 6000)
    assert all(len(operations) <= 1 for operations in drawn)
    assert is_even(Counter(operations[0].name if operations else "" for operations in drawn), kinds=14)
    angles = [operations[0].value for operations in drawn if operations and operations[0].name == "rotate"]
    assert is_even(Counter(str(round(abs(angle) / 4.5)) for angle in angles), kinds=31)
    assert is_even(Counter(str(angle > 0) for angle in angles if angle), kinds=2)


def test_three_augment_is_that_of_deit_iii() -> None:
    drawn = draws(ThreeAugmentConfig(), 3000)
    assert all(len(operations) == 1 for operations in drawn)
    assert is_even(Counter(operations[0].name for operations in drawn), kinds=3)
    assert {operations[0].value for operations in drawn if operations[0].name == "solarise"} == {128.0}
    sigmas = [operations[0].value for operations in drawn if operations[0].name == "blur"]
    assert is_like(sigmas, np.random.default_rng(0).uniform(0.1, 2.0, 3000).tolist())


@pytest.mark.parametrize(
    "policy", [RandAugmentConfig(magnitude=10, magnitude_std=3, probability=1.0), TrivialAugmentConfig(), ThreeAugmentConfig()]
)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_whatever_is_drawn_can_be_carried_out(policy: Any, num_channels: int) -> None:
    random = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image_HWC = np.array(PIL.Image.fromarray(random).resize((32, 32)))[:, :, :num_channels]
    for operations in draws(policy, 150):
        changed = apply_operations(image_HWC, operations)
        assert (changed.shape, changed.dtype) == (image_HWC.shape, np.uint8)


@pytest.mark.parametrize("settings", [{"magnitude": 10.5}, {"magnitude": -1.0}, {}, {"magnitude": 5.0, "probability": 0.0}])
def test_senseless_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        RandAugmentConfig(**settings)
