"""Swin's files: stages and windows off the shapes, what was told elsewhere, and microsoft's own names."""

import pytest

from vitscale.config import CheckpointError
from vitscale.weights.swin_files import HF_SWIN, TIMM_SWIN

TIMM = {
    "patch_embed.proj.weight": (16, 3, 4, 4),
    "layers.0.blocks.0.attn.relative_position_bias_table": (169, 2),
    "layers.0.blocks.0.mlp.fc1.weight": (64, 16),
    "layers.1.blocks.0.attn.relative_position_bias_table": (169, 4),
    "layers.1.blocks.1.attn.relative_position_bias_table": (169, 4),
    "head.fc.weight": (5, 32),
}


def test_stages_and_windows_come_from_the_shapes() -> None:
    assert TIMM_SWIN.claims(TIMM)
    found = TIMM_SWIN.describe(TIMM, settings={"config.json": {"pretrained_cfg": {"input_size": [3, 56, 56]}}}, where="w")
    expected = {"version": 1, "depths": [1, 2], "num_heads": [2, 4], "window_size": 7, "mlp_ratio": 4.0, "image_size": 56}
    assert found.model | expected == found.model
    assert found.head == {"num_classes": 5}


def test_microsofts_merges_come_after_their_stage() -> None:
    own = {"layers.0.downsample.reduction.weight": (32, 64), "head.weight": (5, 32), "layers.1.blocks.0.norm1.bias": (32,)}
    assert set(TIMM_SWIN.entries(own)) == {"layers.1.downsample.reduction.weight", "head.fc.weight", "layers.1.blocks.0.norm1.bias"}


def test_the_window_of_version_2_is_told_by_its_name() -> None:
    shapes = {
        "patch_embed.proj.weight": (16, 3, 4, 4),
        "layers.0.blocks.0.attn.logit_scale": (2, 1, 1),
        "layers.0.blocks.0.mlp.fc1.weight": (64, 16),
    }
    found = TIMM_SWIN.describe(shapes, settings={"config.json": {"architecture": "swinv2_tiny_window16_256"}}, where="w")
    assert (found.model["version"], found.model["window_size"], found.positions) == (2, 16, None)
    assert "window_size" not in TIMM_SWIN.describe(shapes, settings={}, where="w").model


def test_transformers_files_need_their_config() -> None:
    kernel = "embeddings.patch_embeddings.projection.weight"
    assert HF_SWIN.claims({f"swinv2.{kernel}": (1,)})
    assert not HF_SWIN.claims({f"vit.{kernel}": (1,)})
    with pytest.raises(CheckpointError, match=r"swin, whose config\.json is needed, and it is of type 'vit'"):
        HF_SWIN.describe({f"swin.{kernel}": (16, 3, 4, 4)}, settings={"config.json": {"model_type": "vit"}}, where="w")
