"""What families share: reading a model off names and shapes."""

from typing import Any

import pytest

from vitscale.config import CheckpointError
from vitscale.weights.family import count_blocks, image_side, plain_entries, shape_of, told_image_size


def test_blocks_are_counted_from_nought_without_a_gap() -> None:
    assert count_blocks(dict.fromkeys(["b.0.w", "b.1.w", "b.3.w"], (1,)), "b.{i}.w") == 2
    assert count_blocks(dict.fromkeys(["b.0.w", "b.1.other"], (1,)), "b.{i}.w") == 2
    assert count_blocks(dict.fromkeys(["b.1.w", "b.2.w"], (1,)), "b.{i}.w", first=1) == 2
    assert count_blocks({"a": (1,)}, "b.{i}.w") == 0


def test_the_image_is_a_square_of_patches() -> None:
    assert image_side(196, patch_size=16, where="f") == 224
    with pytest.raises(CheckpointError, match="12 positions form no square"):
        image_side(12, patch_size=16, where="f")


def test_a_shape_is_there_and_has_its_dimensions() -> None:
    assert shape_of({"a": (2, 3)}, "a", num_dims=2, where="f") == (2, 3)
    with pytest.raises(CheckpointError, match="b is missing"):
        shape_of({"a": (2, 3)}, "b", num_dims=2, where="f")
    with pytest.raises(CheckpointError, match="a is 2 x 3, and 4 dimensions"):
        shape_of({"a": (2, 3)}, "a", num_dims=4, where="f")


@pytest.mark.parametrize(
    ("config", "side"),
    [
        ({"model_args": {"img_size": 32}, "pretrained_cfg": {"input_size": [3, 224, 224]}}, 32),
        ({"model_args": {"img_size": [32, 32]}}, 32),
        ({"pretrained_cfg": {"input_size": [3, 64, 64]}}, 64),
        ({"model_args": {"img_size": [32, 64]}}, None),
        ({}, None),
    ],
)
def test_timm_tells_the_image_as_one_number_or_two(config: dict[str, Any], side: int | None) -> None:
    assert told_image_size(config) == side


def test_plain_names_stay() -> None:
    assert {name: (entry.source, entry.index) for name, entry in plain_entries({"a": (1,)}).items()} == {"a": ("a", None)}
