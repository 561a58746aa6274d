from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision.transforms import ColorJitter

from vitscale.data.images.photometric import BlurConfig, ColorJitterConfig, SolariseConfig
from vitscale.dist.seeding import CounterRng

COUNT = 3000


def distance(ours: list[float], theirs: list[float]) -> float:
    """The Kolmogorov-Smirnov statistic of two samples."""
    points = np.sort(np.concatenate([ours, theirs]))
    one, other = (np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (ours, theirs))
    return float(np.abs(one - other).max())


def test_color_jitter_is_distributed_as_torchvisions() -> None:
    config = ColorJitterConfig(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    drawn = [config.draw(CounterRng(0, i)) for i in range(COUNT)]
    torch.manual_seed(0)
    ranges = ColorJitter(0.4, 1.5, 0.2, 0.1)
    theirs = [ColorJitter.get_params(ranges.brightness, ranges.contrast, ranges.saturation, ranges.hue) for _ in range(COUNT)]
    for place, name in enumerate(("brightness", "contrast", "saturation", "hue"), start=1):
        values = [operation.value for operations in drawn for operation in operations if operation.name == name]
        assert distance(values, [float(parameters[place]) for parameters in theirs]) < 1.95 * (2 / COUNT) ** 0.5, name
    orders = Counter(tuple(operation.name for operation in operations) for operations in drawn)
    assert len(orders) == 24
    assert 70 < min(orders.values()) <= max(orders.values()) < 190  # 125 expected, 5 standard deviations


def test_color_jitter_draws_only_what_is_set() -> None:
    drawn = [ColorJitterConfig(contrast=0.3, probability=0.8).draw(CounterRng(0, i)) for i in range(COUNT)]
    assert {operation.name for operations in drawn for operation in operations} == {"contrast"}
    assert sum(map(len, drawn)) / COUNT == pytest.approx(0.8, abs=0.03)


def test_blur_and_solarise_come_with_their_probability() -> None:
    blurred = [BlurConfig(probability=0.2, sigma=(0.1, 2.0)).draw(CounterRng(0, i)) for i in range(COUNT)]
    sigmas = [operation.value for operations in blurred for operation in operations]
    assert len(sigmas) / COUNT == pytest.approx(0.2, abs=0.03)
    assert distance(sigmas, np.random.default_rng(0).uniform(0.1, 2.0, COUNT).tolist()) < 0.1
    solarised = [SolariseConfig(probability=0.3, threshold=99).draw(CounterRng(0, i)) for i in range(COUNT)]
    assert sum(map(len, solarised)) / COUNT == pytest.approx(0.3, abs=0.03)
    assert {operation.value for operations in solarised for operation in operations} == {99.0}


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (ColorJitterConfig, {}, "set at least one of brightness"),
        (ColorJitterConfig, {"hue": 0.6}, "less than or equal to 0.5"),
        (BlurConfig, {"probability": 0.5, "sigma": (2.0, 1.0)}, "sigma must be two rising numbers"),
        (BlurConfig, {"probability": 0.0, "sigma": (1.0, 2.0)}, "greater than 0"),
        (SolariseConfig, {"probability": 0.5, "threshold": 256}, "less than or equal to 255"),
    ],
)
def test_senseless_settings_are_refused(make: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**settings)
