"""The grid of inputs: every image in its place, enlarged without smoothing, captioned."""

import numpy as np
import torch

from vitscale.train.pictures import captions, picture_grid, shown_images


def test_pixels_are_enlarged_not_smoothed() -> None:
    images = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
    images[1] = 200
    grid = np.asarray(picture_grid(images, captions=["a", "b", "a very long caption that does not fit"]))
    assert grid.shape == (2 * (112 + 14 + 4) + 4, 2 * (112 + 4) + 4, 3)
    assert set(np.unique(grid[4 : 4 + 112, 4 : 4 + 112])) == {0}
    assert set(np.unique(grid[4 : 4 + 112, 4 + 116 : 4 + 116 + 112])) == {200}
    assert (grid[4 + 112 : 4 + 126, 4:116] < 128).any(), "a caption is drawn below"


def test_colour_images() -> None:
    images = torch.zeros(1, 3, 100, 100, dtype=torch.uint8)
    images[:, 2] = 255
    grid = np.asarray(picture_grid(images, captions=[""]))
    assert tuple(grid[50, 50]) == (0, 0, 255)


def test_captions_are_class_names_where_there_are_any() -> None:
    batch = {"sample_id": torch.tensor([5, 6, 7]), "label": torch.tensor([1, 0, 1])}
    assert captions(batch, count=2, classes=("cat", "dog")) == ["dog", "cat"]
    assert captions(batch, count=3, classes=None) == ["1", "0", "1"]
    assert captions({"sample_id": torch.tensor([5])}, count=3, classes=None) == [""]
    several = {"sample_id": torch.tensor([5, 6, 7]), "labels": torch.tensor([[1, 1], [0, 1], [0, 0]], dtype=torch.uint8)}
    assert captions(several, count=3, classes=("cat", "dog")) == ["cat, dog", "dog", ""]


def test_sequences_of_patches_are_shown_as_the_images_that_they_were() -> None:
    image = torch.arange(32, dtype=torch.uint8).view(1, 4, 8)
    sequence = torch.cat([*image.unfold(1, 2, 2).unfold(2, 2, 2).reshape(1, 8, 2, 2).unbind(1), torch.zeros(1, 2, 2)], dim=1).byte()
    batch = {"image": torch.stack([sequence, sequence, sequence]), "patch_grid": torch.tensor([[2, 4]] * 3)}
    assert torch.equal(shown_images(batch, count=2), torch.stack([image, image]))
    assert torch.equal(shown_images({"image": batch["image"]}, count=1), batch["image"][:1])
