"""Schedules against their closed forms and their promises at the edges."""

import math

import pytest

from vitscale.optim.config import CosineConfig, OptimConfig, RsqrtConfig, WsdConfig
from vitscale.optim.schedules import learning_rate

TOTAL = 100_000


def rate(schedule: CosineConfig | RsqrtConfig | WsdConfig, samples: int) -> float:
    return learning_rate(OptimConfig(lr=2.0, schedule=schedule), samples=samples, total_samples=TOTAL)


@pytest.mark.parametrize(
    ("schedule", "samples", "expected"),
    [
        (CosineConfig(), 0, 2.0),
        (CosineConfig(), TOTAL // 2, 1.0),
        (CosineConfig(), TOTAL, 0.0),
        (CosineConfig(final_fraction=0.1), TOTAL, 0.2),
        (CosineConfig(warmup_samples=10_000), 0, 0.0),
        (CosineConfig(warmup_samples=10_000), 5_000, 1.0),
        (CosineConfig(warmup_samples=10_000), 10_000, 2.0),
        (CosineConfig(warmup_samples=10_000), 55_000, 1.0),
        (RsqrtConfig(timescale_samples=10_000), 0, 2.0),
        (RsqrtConfig(timescale_samples=10_000), 30_000, 1.0),
        (RsqrtConfig(timescale_samples=10_000, warmup_samples=10_000), 10_000, 2.0),
        (RsqrtConfig(timescale_samples=10_000, warmup_samples=10_000), 20_000, 2.0 / math.sqrt(2.0)),
        (RsqrtConfig(timescale_samples=10_000, cooldown_samples=20_000), 90_000, 2.0 / math.sqrt(10.0) * 0.5),
        (RsqrtConfig(timescale_samples=10_000, cooldown_samples=20_000), TOTAL, 0.0),
        (WsdConfig(), 99_999, 2.0),
        (WsdConfig(warmup_samples=1_000, decay_samples=50_000), 500, 1.0),
        (WsdConfig(warmup_samples=1_000, decay_samples=50_000), 49_000, 2.0),
        (WsdConfig(warmup_samples=1_000, decay_samples=50_000), 75_000, 1.0),
        (WsdConfig(decay_samples=50_000, final_fraction=0.5), TOTAL, 1.0),
    ],
)
def test_closed_forms(schedule: CosineConfig | RsqrtConfig | WsdConfig, samples: int, expected: float) -> None:
    assert rate(schedule, samples) == pytest.approx(expected, abs=1e-12)


def test_rate_does_not_depend_on_the_batch_size() -> None:
    schedule = CosineConfig(warmup_samples=3_000)
    by_64 = [rate(schedule, step * 64) for step in range(0, 1_000, 2)]
    by_128 = [rate(schedule, step * 128) for step in range(500)]
    assert by_64 == by_128
