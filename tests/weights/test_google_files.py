"""Google's files: the model that names and shapes tell."""

from typing import Any

import numpy as np
import pytest

from tests.weights.foreign import google_arrays
from vitscale.config import CheckpointError
from vitscale.weights.family import Described
from vitscale.weights.google_files import GOOGLE, google_prefix


def described(arrays: dict[str, Any]) -> Described:
    shapes = {name: value.shape for name, value in arrays.items()}
    return GOOGLE.describe({name: entry.shape for name, entry in GOOGLE.entries(shapes).items()}, settings={}, where="w.npz")


def test_every_size_is_read_off_the_shapes() -> None:
    found = described(google_arrays(pre_logits=16))
    sizes = {"num_channels": 3, "patch_size": 4, "width": 32, "depth": 2, "num_heads": 4, "mlp_width": 48, "image_size": 12}
    assert found.model == {
        "kind": "vit", **sizes, "gelu": "tanh", "layer_norm_eps": 1e-6, "pooling": "cls", "prefix_positions": True,
        "image_mean": [0.5], "image_std": [0.5],
    }  # fmt: skip
    assert found.head == {"num_classes": 5, "pre_logits": 16}
    assert (found.layout, found.positions, found.class_row) == ("vit_jax", "google", True)


@pytest.mark.parametrize("class_row", [True, False])
def test_whether_the_class_token_has_a_position_is_counted(class_row: bool) -> None:
    found = described(google_arrays(big_vision=True, class_row=class_row))
    assert (found.layout, found.class_row, found.model["image_size"]) == ("big_vision", class_row, 12)


def test_without_a_table_positions_are_fixed_and_the_image_size_unknown() -> None:
    arrays = google_arrays(big_vision=True, pooling="mean")
    del arrays["pos_embedding"]
    found = described(arrays)
    assert found.model["positions"] == "sincos2d_big_vision"
    assert "image_size" not in found.model


def test_prefixes() -> None:
    assert google_prefix({"opt/target/embedding/kernel": (1,)}) == "opt/target/"
    assert google_prefix({"params/img/embedding/kernel": (1,), "params/t": (1,)}) == "params/img/"
    assert google_prefix({"patch_embed.proj.weight": (1,)}) is None


def test_patches_that_are_no_squares() -> None:
    with pytest.raises(CheckpointError, match="its patches are 4 x 2 pixels"):
        described(google_arrays() | {"embedding/kernel": np.zeros((4, 2, 3, 32))})
