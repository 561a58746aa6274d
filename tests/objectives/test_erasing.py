import math
import random

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from timm.data.random_erasing import RandomErasing

from vitscale.dist.seeding import CounterRng
from vitscale.objectives.erasing import ErasingConfig, erase_images, normal_noise

COUNT = 3000


def draws(config: ErasingConfig, count: int, *, image_size: int = 32) -> torch.Tensor:
    return torch.stack([torch.from_numpy(config.draw(CounterRng(0, i), image_size=image_size)) for i in range(count)])


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The Kolmogorov-Smirnov statistic of two samples."""
    points = np.sort(np.concatenate([ours, theirs]))
    one, other = (np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (ours, theirs))
    return float(np.abs(one - other).max())


def timm_boxes(count: int, *, image_size: int) -> np.ndarray:
    """Top, bottom, left, right of what timm erases."""
    erase = RandomErasing(probability=1.0, mode="const", device="cpu")
    boxes = []
    for _ in range(count):
        erased = erase(torch.ones(1, image_size, image_size))[0] == 0
        rows, columns = (torch.nonzero(erased.any(dim=dim)).flatten() for dim in (1, 0))
        boxes.append((int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1))
    return np.array(boxes)


def test_boxes_are_distributed_as_timms() -> None:
    random.seed(0)
    ours, theirs = draws(ErasingConfig(probability=1.0), COUNT, image_size=64).numpy(), timm_boxes(COUNT, image_size=64)
    for name, feature in {
        "height": lambda box: box[:, 1] - box[:, 0],
        "width": lambda box: box[:, 3] - box[:, 2],
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 2],
    }.items():
        assert distance(feature(ours), feature(theirs)) < 1.95 * math.sqrt(2 / COUNT), name


def test_the_share_of_erased_images() -> None:
    erased = draws(ErasingConfig(probability=0.25), COUNT)[:, 1] > 0
    assert erased.float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_a_box_that_never_fits_erases_nothing() -> None:
    config = ErasingConfig(probability=1.0, area=(0.9, 0.9), ratio=(3.0, 3.0))
    assert not draws(config, 20).any()


@pytest.mark.parametrize("fill", ["noise", "zero"])
def test_only_the_box_changes(fill: str) -> None:
    config = ErasingConfig(probability=0.7, fill=fill)
    erase_B5, image_BCHW = draws(config, 12), torch.full((12, 3, 32, 32), 7.0)
    erased = erase_images(image_BCHW, erase_B5, fill=config.fill)
    for image_CHW, (top, bottom, left, right, _) in zip(erased, erase_B5.tolist(), strict=True):
        box = image_CHW[:, top:bottom, left:right]
        assert (image_CHW != 7.0).sum() == box.numel()
        if fill == "zero":
            assert not box.any()
        elif box.numel():
            assert box.unique().numel() > 0.99 * box.numel()  # each channel of each pixel has its own
    assert (image_BCHW == 7.0).all()


def test_a_sample_is_erased_alike_in_any_batch() -> None:
    erase_B5, image_BCHW = draws(ErasingConfig(probability=0.8), 8), torch.randn(8, 3, 32, 32)
    whole = erase_images(image_BCHW, erase_B5, fill="noise")
    order = torch.tensor([5, 2, 7])
    assert torch.equal(erase_images(image_BCHW[order], erase_B5[order], fill="noise"), whole[order])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_erases_in_the_images_type(dtype: torch.dtype) -> None:
    assert erase_images(torch.ones(2, 1, 32, 32, dtype=dtype), draws(ErasingConfig(probability=1.0), 2), fill="noise").dtype == dtype


def test_noise_is_normal_and_independent() -> None:
    seed_B = torch.tensor([int(CounterRng("noise", i).bits() >> 32) for i in range(6)] + [0, 1, 2, 3, 2**32 - 1])
    noise_BN = normal_noise(seed_B, num_values=30_001)
    assert noise_BN.shape == (11, 30_001)
    assert noise_BN.isfinite().all()
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).numpy()
    for row_N in noise_BN:
        assert distance(row_N.numpy(), normal) < 1.95 * math.sqrt(1 / 30_001 + 1 / 200_000)
    correlation = torch.corrcoef(torch.cat([noise_BN[:, :-1], noise_BN[:, 1:]]))  # between samples, and between neighbours
    assert (correlation - torch.eye(22)).abs().max() < 5 / math.sqrt(30_000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"area": (0.5, 0.1)}, "area must be two rising shares"),
        ({"area": (0.0, 0.1)}, "area must be two rising shares"),
        ({"ratio": (2.0, 1.0)}, "ratio must be two rising positive numbers"),
        ({"probability": 0.0}, "greater than 0"),
    ],
)
def test_senseless_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ErasingConfig(**{"probability": 0.5, **settings})
