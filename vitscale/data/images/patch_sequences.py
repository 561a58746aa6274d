"""Images that keep their aspect ratio, as sequences of patches of one length: what NaFlex models read (SigLIP 2, NaViT).

A sequence is an image (C, length * side, side): its patches lie one below the other, row by row, and zeros fill it up.
"""

# Shape suffixes: H height, W width, C channels, B batch, P patch side, N patches, R rows, G columns of patches.

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitscale.data.images.decode import decode_crop_member, decode_image_member
from vitscale.data.images.transforms import AugmentConfig, Interpolation, TrainTransform, augmented, resize
from vitscale.data.labels import ANY_CLASS, TargetReader
from vitscale.data.types import InputSpec, JpegDecoder, RawSample, SampleFields, SampleTransform
from vitscale.dist.seeding import CounterRng
from vitscale.nn.input_form import PATCH_GRID_KEY, PatchSequence
from vitscale.nn.resample import Grid

Image = npt.NDArray[np.uint8]

_LEAST_SCALE, _GREATEST_SCALE, _SCALE_STEP = 1e-6, 100.0, 1e-5


@dataclass(frozen=True, kw_only=True)
class SequenceTransform:
    """Decode, crop, resize to a grid of patches, flip, augment: `image` uint8 (C, length * side, side), `patch_grid` int64 (2,), and what
    `targets` reads.

    The grid is the largest of the crop's aspect ratio with at most the sequence's length of patches, or the share of it that is
    drawn for the sample. A crop with both sides at least 2, 4 or 8 times those of a square image of that length is decoded at 1/2,
    1/4 or 1/8 where it comes from a JPEG.
    """

    sequence: PatchSequence
    num_channels: int
    augment: AugmentConfig
    targets: TargetReader | None = ANY_CLASS
    jpeg_decoder: JpegDecoder = "simplejpeg"

    def __call__(self, sample: RawSample, rng: CounterRng) -> SampleFields:
        """Raises what `TrainTransform` raises."""
        sequence, augment = self.sequence, self.augment
        part_HWC = decode_crop_member(
            sample,
            num_channels=self.num_channels,
            choose_box=lambda height, width: augment.box(height=height, width=width, rng=rng),
            size=math.ceil(math.sqrt(sequence.length)) * sequence.patch_size,
            jpeg_decoder=self.jpeg_decoder,
        )
        share = 1.0 if sequence.least_share == 1.0 else rng.uniform(sequence.least_share, 1.0)
        grid = _grid_of(part_HWC, patch_size=sequence.patch_size, max_patches=max(1, round(share * sequence.length)))
        height, width = grid.rows * sequence.patch_size, grid.columns * sequence.patch_size
        image_HWC = augmented(part_HWC, height=height, width=width, augment=augment, rng=rng)
        return {**_fields(image_HWC, grid=grid, sequence=sequence), **({} if self.targets is None else self.targets(sample))}


@dataclass(frozen=True, kw_only=True)
class SequenceEvalTransform:
    """Decode the whole image, resize it to a grid of patches: the fields of `SequenceTransform`, nothing drawn."""

    sequence: PatchSequence
    num_channels: int
    interpolation: Interpolation = "bilinear"
    targets: TargetReader = ANY_CLASS

    def __call__(self, sample: RawSample, rng: CounterRng) -> SampleFields:  # noqa: ARG002  (nothing is random here)
        """Raises what `EvalTransform` raises."""
        sequence = self.sequence
        image_HWC = decode_image_member(sample, num_channels=self.num_channels)
        grid = _grid_of(image_HWC, patch_size=sequence.patch_size, max_patches=sequence.length)
        height, width = grid.rows * sequence.patch_size, grid.columns * sequence.patch_size
        image_HWC = resize(image_HWC, height=height, width=width, interpolation=self.interpolation)
        return {**_fields(image_HWC, grid=grid, sequence=sequence), **self.targets(sample)}


def image_transform(inputs: InputSpec, *, augment: AugmentConfig, targets: TargetReader | None) -> SampleTransform:
    """What makes a training sample in the form that a model takes: a square image, or a sequence of patches."""
    channels, decoder = inputs.num_channels, inputs.jpeg_decoder
    if inputs.sequence is None:
        return TrainTransform(image_size=inputs.image_size, num_channels=channels, augment=augment, targets=targets, jpeg_decoder=decoder)
    return SequenceTransform(sequence=inputs.sequence, num_channels=channels, augment=augment, targets=targets, jpeg_decoder=decoder)


def patch_grid(*, height: int, width: int, patch_size: int, max_patches: int) -> Grid:
    """The grid of an image in pixels that is scaled as far as `max_patches` allow, each side rounded up to whole patches.

    The search of SigLIP 2 (transformers, models/siglip2/image_processing_siglip2.py): bisection of the scale to 1e-5.
    """
    low, high = _LEAST_SCALE, _GREATEST_SCALE
    while high - low >= _SCALE_STEP:
        scale = (low + high) / 2
        rows, columns = (max(1, math.ceil(side * scale / patch_size)) for side in (height, width))
        low, high = (scale, high) if rows * columns <= max_patches else (low, scale)
    rows, columns = (max(1, math.ceil(side * low / patch_size)) for side in (height, width))
    return Grid(rows=rows, columns=columns)


def cut_patches(image_HWC: Image, *, patch_size: int, length: int) -> Image:
    """(R * P, G * P, C) to (C, length * P, P)."""
    height, width, num_channels = image_HWC.shape
    rows, columns = height // patch_size, width // patch_size
    patches_RPGPC = image_HWC.reshape(rows, patch_size, columns, patch_size, num_channels)
    sequence_CNPP = np.zeros((num_channels, length, patch_size, patch_size), dtype=np.uint8)
    sequence_CNPP[:, : rows * columns] = patches_RPGPC.transpose(4, 0, 2, 1, 3).reshape(num_channels, -1, patch_size, patch_size)
    return sequence_CNPP.reshape(num_channels, length * patch_size, patch_size)


def joined_images(sequences_BCHW: Tensor, grid_B2: Tensor) -> Tensor:
    """The images (B, C, H, W) of sequences for people to look at, white where one is smaller than the largest of them."""
    side = sequences_BCHW.shape[3]
    rows, columns = grid_B2.amax(dim=0).tolist()
    images_BCHW = torch.full((*sequences_BCHW.shape[:2], rows * side, columns * side), 255, dtype=torch.uint8)
    for image_CHW, sequence_CHW, (rows, columns) in zip(images_BCHW, sequences_BCHW, grid_B2.tolist(), strict=True):
        patches_CRGPP = sequence_CHW[:, : rows * columns * side].unflatten(1, (rows, columns, side))
        image_CHW[:, : rows * side, : columns * side] = patches_CRGPP.transpose(2, 3).flatten(3).flatten(1, 2)
    return images_BCHW


def joined_fields(fields: SampleFields) -> SampleFields:
    """A sample's fields with its image put together again where it is a sequence of patches."""
    image, grid = fields["image"], fields.get(PATCH_GRID_KEY)
    if not isinstance(image, np.ndarray) or not isinstance(grid, np.ndarray):
        return fields
    joined = joined_images(torch.from_numpy(image).unsqueeze(0), torch.from_numpy(grid).unsqueeze(0))
    return {**fields, "image": joined[0].numpy()}


def _grid_of(image_HWC: Image, *, patch_size: int, max_patches: int) -> Grid:
    return patch_grid(height=image_HWC.shape[0], width=image_HWC.shape[1], patch_size=patch_size, max_patches=max_patches)


def _fields(image_HWC: Image, *, grid: Grid, sequence: PatchSequence) -> SampleFields:
    image_CHW = cut_patches(image_HWC, patch_size=sequence.patch_size, length=sequence.length)
    return {"image": image_CHW, PATCH_GRID_KEY: np.array(grid, dtype=np.int64)}
