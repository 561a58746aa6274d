"""What a run's transforms make of a sample, drawn as the run would draw it."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitscale.data.images.patch_sequences import joined_fields
from vitscale.data.types import InputSpec, RawSample, SampleTransform
from vitscale.dist.seeding import CounterRng
from vitscale.run_config import load_run_config

_CHANNELS = (1, 3)


@dataclass(frozen=True, kw_only=True)
class RunViews:
    """The first `num_views` views of a sample, bit for bit those that a run of `seed` trains on."""

    transform: SampleTransform
    seed: int
    num_views: int

    def __call__(self, sample: RawSample) -> list[npt.NDArray[np.uint8]]:
        """uint8 (H, W, C) images; several for each view where the transform makes several. Raises `DataError`."""
        images = []
        for view in range(self.num_views):
            rng = CounterRng(self.seed, view, sample.sample_id, "transform")
            fields = joined_fields(self.transform(replace(sample, epoch=view, view=view), rng))
            images += [image for name in sorted(fields) for image in _images(fields[name])]
        return images


def run_views(config_path: Path, *, num_views: int) -> RunViews:
    """The transforms of a run's YAML file, at the image size of its end, or for the first of the lengths that its sequences of patches
    have. Raises `ConfigError`."""
    config = load_run_config(config_path)
    inputs = InputSpec(
        image_size=config.model.image_size,
        num_channels=config.model.num_channels,
        jpeg_decoder=config.data.jpeg_decoder,
        sequence=config.model.input_forms[0].sequence,
    )
    return RunViews(transform=config.objective.sample_transform(inputs), seed=config.seed, num_views=num_views)


def _images(value: npt.NDArray[np.generic] | int | float) -> list[npt.NDArray[np.uint8]]:
    """The images that a batch field holds: one (C, H, W) or several (V, C, H, W)."""
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim not in (3, 4) or value.shape[-3] not in _CHANNELS:
        return []
    several = value if value.ndim == 4 else value[None]
    return [np.ascontiguousarray(image.transpose(1, 2, 0)) for image in several]
