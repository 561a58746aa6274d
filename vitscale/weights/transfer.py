"""Starting a model from another one's weights: which tensor is loaded, resampled, replaced or dropped, and its new value."""

from typing import Literal

from vitscale.config import Config


class InitFromConfig(Config):
    """Weights to start from instead of random ones (fine-tuning, another resolution, another patch size)."""

    path: str
    """A run directory (its newest complete checkpoint is taken) or the folder of one checkpoint."""
    weights: Literal["model", "ema"] = "model"
    """Which of its weights: the trained ones or their moving average."""
    positions: Literal["google", "timm", "hf"] = "google"
    """How position embeddings are resampled to another grid: as in vit_jax and big_vision (bilinear, corners aligned), as
    in timm (bicubic, antialiased) or as in Hugging Face transformers (bicubic)."""
    head: Literal["auto", "keep", "replace"] = "auto"
    """The classification head: keep the source's, replace it by a fresh one, or auto: keep it where all of it fits."""
