"""Learning rates as pure functions of the samples seen, so that a resume, another world or another batch cannot shift them.

Position is the number of samples consumed before the step, as in big_vision (`big_vision/utils.py: create_learning_rate_schedule`,
google-research/big_vision): the first step of a warm-up has rate 0 and the last step of a decay is still above its end.
"""

import math
from collections.abc import Callable

from vitscale.optim.config import CosineConfig, OptimConfig, RsqrtConfig, WsdConfig


def learning_rate(config: OptimConfig, *, samples: int, total_samples: int) -> float:
    """The rate of the step that begins after `samples` of `total_samples` training samples."""
    schedule = config.schedule
    warmup = min(1.0, samples / schedule.warmup_samples) if schedule.warmup_samples else 1.0
    return config.lr * warmup * _AFTER_WARMUP[schedule.kind](schedule, samples, total_samples)


def _cosine(schedule: CosineConfig, samples: int, total_samples: int) -> float:
    span = max(1, total_samples - schedule.warmup_samples)
    progress = min(1.0, max(0.0, (samples - schedule.warmup_samples) / span))
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _rsqrt(schedule: RsqrtConfig, samples: int, total_samples: int) -> float:
    # Zhai et al. 2022 (Scaling Vision Transformers), section 3.5: peak right after the warm-up, then 1/sqrt.
    past = max(0, samples - schedule.warmup_samples)
    decay = 1.0 / math.sqrt(1.0 + past / schedule.timescale_samples)
    return decay * _remaining(schedule.cooldown_samples, samples, total_samples)


def _wsd(schedule: WsdConfig, samples: int, total_samples: int) -> float:
    remaining = _remaining(schedule.decay_samples, samples, total_samples)
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * remaining


def _remaining(length: int, samples: int, total_samples: int) -> float:
    """1 until `length` samples before the end, then linearly to 0."""
    return min(1.0, max(0.0, (total_samples - samples) / length)) if length else 1.0


_AFTER_WARMUP: dict[str, Callable[..., float]] = {"cosine": _cosine, "rsqrt": _rsqrt, "wsd": _wsd}
