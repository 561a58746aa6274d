"""Configuration of the optimizer, its learning-rate schedule, clipping and the moving average of the weights."""

from typing import Annotated, Literal

from pydantic import Field

from vitscale.config import Config


class CosineConfig(Config):
    """Linear warm-up, then half a cosine down to `final_fraction` of the peak."""

    kind: Literal["cosine"] = "cosine"
    warmup_samples: int = Field(default=0, ge=0)
    """Samples over which the rate rises linearly from 0."""
    final_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Rate at the end, as a fraction of the peak."""


class RsqrtConfig(Config):
    """Linear warm-up, inverse square root decay, linear cooldown to 0: the JFT recipe (Zhai et al. 2022, Scaling ViT)."""

    kind: Literal["rsqrt"] = "rsqrt"
    warmup_samples: int = Field(default=0, ge=0)
    """Samples over which the rate rises linearly from 0."""
    timescale_samples: int = Field(ge=1)
    """Samples after which the rate has fallen to 1/sqrt(2) of its peak."""
    cooldown_samples: int = Field(default=0, ge=0)
    """Samples at the end over which the rate falls linearly to 0."""


class WsdConfig(Config):
    """Warm-up, stable, decay: linear up, constant, then linear down to `final_fraction` of the peak."""

    kind: Literal["wsd"] = "wsd"
    warmup_samples: int = Field(default=0, ge=0)
    """Samples over which the rate rises linearly from 0."""
    decay_samples: int = Field(default=0, ge=0)
    """Samples at the end over which the rate falls linearly."""
    final_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Rate at the end, as a fraction of the peak."""


ScheduleConfig = Annotated[CosineConfig | RsqrtConfig | WsdConfig, Field(discriminator="kind")]


class OptimConfig(Config):
    """AdamW (Loshchilov and Hutter 2019), its schedule, gradient clipping and the moving average of the weights."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay, times the learning rate; applied to the kernels of linear layers and convolutions only."""
    clip_grad_norm: float | None = Field(default=1.0, gt=0)
    """Largest global gradient norm; null never clips."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of the moving average of the weights; null keeps none."""
    schedule: ScheduleConfig = CosineConfig()
    """Learning rate as a pure function of the samples seen."""
