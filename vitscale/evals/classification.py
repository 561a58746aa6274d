"""Top-1 and top-5 accuracy on a held-out data set, every sample counted exactly once on any number of ranks."""

from typing import Literal

from pydantic import Field

from vitscale.config import OPERATIONAL, Config


class ClassificationConfig(Config):
    """Top-1 and top-5 accuracy on a held-out packed data set. Evaluating never changes what a run computes."""

    kind: Literal["classification"] = "classification"
    path: str = Field(json_schema_extra=OPERATIONAL)
    """Folder of the packed held-out data set, the one that holds manifest.json."""
    weights: Literal["model", "ema"] = Field(default="model", json_schema_extra=OPERATIONAL)
    """Which weights are evaluated: the trained ones or their moving average."""
    every_steps: int | None = Field(default=None, ge=1, json_schema_extra=OPERATIONAL)
    """Optimizer steps between evaluations in training; null evaluates only at the end."""
    batch_size: int = Field(default=256, ge=1, json_schema_extra=OPERATIONAL)
    """Samples per rank and forward pass."""
    num_workers: int = Field(default=0, ge=0, json_schema_extra=OPERATIONAL)
    """Loader processes per rank; 0 decodes in the evaluating process."""
    crop_fraction: float = Field(default=1.0, gt=0, le=1, json_schema_extra=OPERATIONAL)
    """Side of the centre crop as a fraction of the resized image's shorter side; 0.875 is the usual choice for photos."""
