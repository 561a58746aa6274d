"""Sequences of patches: SigLIP 2's grids, cut and joined without loss, the same sample whoever makes it."""

import itertools

import numpy as np
import pytest
import torch
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

from tests.data.packed import png_bytes
from vitscale.data.images.patch_sequences import (
    SequenceEvalTransform,
    SequenceTransform,
    cut_patches,
    image_transform,
    joined_images,
    patch_grid,
)
from vitscale.data.images.transforms import AugmentConfig, EvalTransform, TrainTransform
from vitscale.data.types import InputSpec, RawSample
from vitscale.dist.seeding import CounterRng
from vitscale.nn.input_form import PATCH_GRID_KEY, PatchSequence

SEQUENCE = PatchSequence(length=20, patch_size=4)


def sample(height: int, width: int, *, channels: int = 1) -> RawSample:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)
    members = {"png": memoryview(png_bytes(pixels.squeeze())), "cls": memoryview(b"3")}
    return RawSample(sample_id=5, epoch=0, view=0, key="five", shard="a.tar", members=members)


def test_grids_are_siglip_2s() -> None:
    for (height, width), patch_size, most in itertools.product(
        [(28, 28), (480, 640), (640, 480), (1, 999), (3000, 17), (100, 101), (7, 5)], (4, 16), (1, 20, 256)
    ):
        found = patch_grid(height=height, width=width, patch_size=patch_size, max_patches=most)
        expected = get_image_size_for_max_num_patches(height, width, patch_size, most)
        assert (found.rows * patch_size, found.columns * patch_size) == tuple(expected)
        assert 1 <= found.rows * found.columns <= most


@pytest.mark.parametrize("channels", [1, 3])
def test_cutting_and_joining_lose_nothing(channels: int) -> None:
    random = np.random.default_rng(0)
    shapes = [(8, 12), (12, 8), (4, 20)]
    images = [random.integers(0, 255, (height, width, channels), dtype=np.uint8) for height, width in shapes]
    sequences = torch.from_numpy(np.stack([cut_patches(image, patch_size=4, length=7) for image in images]))
    assert sequences.shape == (3, channels, 28, 4)
    assert torch.equal(sequences[0, :, 4:8], torch.from_numpy(images[0][:4, 4:8].transpose(2, 0, 1))), (
        "the second patch is right of the first"
    )
    assert not sequences[0, :, 24:].any()
    joined = joined_images(sequences, torch.tensor([(height // 4, width // 4) for height, width in shapes]))
    for image, (height, width), original in zip(joined, shapes, images, strict=True):
        assert torch.equal(image[:, :height, :width], torch.from_numpy(original.transpose(2, 0, 1)))
        assert (image[:, height:] == 255).all()
        assert (image[:, :, width:] == 255).all()


def test_an_evaluated_image_keeps_its_aspect_ratio() -> None:
    fields = SequenceEvalTransform(sequence=SEQUENCE, num_channels=1)(sample(40, 20), CounterRng(0))
    assert fields[PATCH_GRID_KEY].tolist() == [6, 3]
    square = EvalTransform(image_size=16, num_channels=1)(sample(16, 16), CounterRng(0))
    sequence = SequenceEvalTransform(sequence=PatchSequence(length=16, patch_size=4), num_channels=1)(sample(16, 16), CounterRng(0))
    joined = joined_images(torch.from_numpy(sequence["image"]).unsqueeze(0), torch.from_numpy(sequence[PATCH_GRID_KEY]).unsqueeze(0))
    assert np.array_equal(joined[0].numpy(), square["image"])
    assert sequence["label"] == square["label"] == 3


def test_a_square_sample_is_augmented_as_without_sequences() -> None:
    augment = AugmentConfig(crop="pad", padding=2, flip=True)
    inputs = InputSpec(image_size=16, num_channels=1)
    plain = image_transform(inputs, augment=augment, targets=None)
    assert isinstance(plain, TrainTransform)
    ours = SequenceTransform(sequence=PatchSequence(length=16, patch_size=4), num_channels=1, augment=augment, targets=None)
    for seed in range(8):
        expected = plain(sample(16, 16), CounterRng(seed))["image"]
        fields = ours(sample(16, 16), CounterRng(seed))
        image = joined_images(torch.from_numpy(fields["image"]).unsqueeze(0), torch.from_numpy(fields[PATCH_GRID_KEY]).unsqueeze(0))
        assert np.array_equal(image[0].numpy(), expected)


def test_resolutions_are_drawn_for_each_sample_within_the_share() -> None:
    sequence = PatchSequence(length=100, patch_size=2, least_share=0.25)
    transform = image_transform(InputSpec(image_size=16, num_channels=3, sequence=sequence), augment=AugmentConfig(), targets=None)
    counts = [int(transform(sample(30, 30, channels=3), CounterRng(seed))[PATCH_GRID_KEY].prod()) for seed in range(40)]
    assert min(counts) < 49
    assert max(counts) > 80
    assert all(25 <= count <= 100 for count in counts)
    again = [int(transform(sample(30, 30, channels=3), CounterRng(seed))[PATCH_GRID_KEY].prod()) for seed in range(40)]
    assert again == counts
