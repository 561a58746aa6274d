"""Every model that a layout can hold goes out, gives its project's own outputs there, and comes back to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.random_run import stored_tensors, write_random_run
from vitscale import api
from vitscale.config import CheckpointError
from vitscale.train.stored_model import StoredModel
from vitscale.weights.targets import Format

ROUNDING = 3e-6
"""Bound of a difference of logits, as a share of the largest: sums in another order brought 1.6e-6 on processors with SSE4, AVX2 and
AVX-512, and what a layout gets wrong brings more than 1e-5."""

GOOGLE = ("vit_jax", "big_vision")
CLASS_ONLY = {"prefix_positions": False}

BEIT = {
    "positions": "none", "qkv_bias": "no_key", "class_token": True, "pooling": "mean", "norm_place": "pooled", "layer_scale": 0.1,
    "position_bias": {"kind": "relative"}, "resampling": "timm",
}  # fmt: skip
EVA = {
    "rotary": {"kind": "eva02", "pretrained_grid": 4}, "mlp": "swiglu", "qkv_bias": "no_key", "class_token": True, "pooling": "mean",
    "norm_place": "pooled",
}  # fmt: skip
DINOV3 = {
    "positions": "none", "rotary": {"kind": "dinov3"}, "qkv_bias": "no_key", "layer_scale": 1e-5, "num_registers": 2,
    "layer_norm_eps": 1e-5,
}  # fmt: skip
CLIP = {"gelu": "quick", "embedding_norm": True, "patch_bias": False, "layer_norm_eps": 1e-5}
SWIN = {
    "sizes": {"kind": "swin", "image_size": 24, "patch_size": 4, "width": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 3},
    "window_padding": "after_shift",
}  # fmt: skip

HIERA = {"kind": "hiera", "image_size": 32, "width": 16, "depths": [1, 2], "num_heads": 1}
TWO_TABLES = {"window_positions": True, "position_grid": 3, "layer_scale": 0.1, "shortcut": "concatenate", "resampling": "timm"}

CASES: dict[str, tuple[Format, str, dict[str, Any]]] = {
    "timm, ViT": ("timm", "timm", {}),
    "timm, DeiT III": ("timm", "timm", {"prefix_positions": False, "layer_scale": 1e-6}),
    "timm, distilled DeiT": ("timm", "timm", {"distillation_token": True}),
    "timm, DINOv2 with registers": ("timm", "timm", {"num_registers": 2, "layer_scale": 1e-5, "mlp": "swiglu", **CLASS_ONLY}),
    "timm, SigLIP": ("timm", "timm", {"pooling": "map", "gelu": "tanh"}),
    "timm, SigLIP without a head": ("timm", "timm", {"pooling": "map", "gelu": "tanh", "num_classes": 0}),
    "timm, MAE fine-tuned": ("timm", "timm", {"pooling": "mean", "norm_place": "pooled", "class_token": True}),
    "timm, ViT-22B's norms": ("timm", "timm", {"qk_norm": True, "norm": "rms", "qkv_bias": "none", "proj_bias": False, "mlp_bias": False}),
    "timm, no positions": ("timm", "timm", {"positions": "none", "pooling": "mean", "mlp_norm": True}),
    "hf, ViT": ("hf", "hf_vit", {"layer_norm_eps": 1e-12}),
    "hf, ViT without a head": ("hf", "hf_vit", {"num_classes": 0, "qkv_bias": "none"}),
    "hf, distilled DeiT": ("hf", "hf_deit", {"distillation_token": True}),
    "hf, DINOv2": ("hf", "hf_dinov2", {"layer_scale": 1e-5}),
    "hf, DINOv2 gated": ("hf", "hf_dinov2", {"layer_scale": 1e-5, "mlp": "swiglu", "mlp_width": 88, "num_classes": 0}),
    "hf, DINOv2 with registers": ("hf", "hf_dinov2_with_registers", {"layer_scale": 1e-5, "num_registers": 3}),
    "hf, SigLIP": ("hf", "hf_siglip", {"pooling": "map", "gelu": "tanh", "num_classes": 0}),
    "hf, SigLIP classifier": ("hf", "hf_siglip", {"pooling": "mean"}),
    "timm, CLIP": ("timm", "timm", CLIP),
    "hf, CLIP": ("hf", "hf_clip", {**CLIP, "num_classes": 0}),
    "timm, BEiT": ("timm", "timm_beit", BEIT),
    "timm, BEiT, one table": ("timm", "timm_beit", {**BEIT, "position_bias": {"kind": "relative", "shared": True}}),
    "timm, EVA-02 S": ("timm", "timm_eva", EVA),
    "timm, EVA-02 B": ("timm", "timm_eva", {**EVA, "mlp_norm": True}),
    "timm, DINOv3": ("timm", "timm_eva", DINOV3),
    "timm, DINOv3 gated": ("timm", "timm_eva", {**DINOV3, "mlp": "swiglu", "num_classes": 0}),
    "timm, Swin": ("timm", "timm_swin", SWIN),
    "timm, SwinV2": ("timm", "timm_swin", {**SWIN, "version": 2, "pretrained_window_sizes": [3, 2]}),
    "timm, Hiera": ("timm", "timm_hiera", {"sizes": HIERA, "resampling": "timm"}),
    "timm, Hiera, two tables": ("timm", "timm_hiera", {"sizes": HIERA, **TWO_TABLES}),
    "hf, BEiT": ("hf", "hf_beit", BEIT),
    "hf, BEiT, one table": ("hf", "hf_beit", {**BEIT, "position_bias": {"kind": "relative", "shared": True}, "num_classes": 0}),
    "hf, DINOv3": ("hf", "hf_dinov3_vit", {**DINOV3, "num_classes": 0}),
    "hf, DINOv3 gated": ("hf", "hf_dinov3_vit", {**DINOV3, "num_classes": 0, "mlp": "swiglu", "qkv_bias": "none"}),
    "hf, Swin": ("hf", "hf_swin", {**SWIN, "window_padding": "before_shift"}),
    "hf, SwinV2": ("hf", "hf_swinv2", {**SWIN, "version": 2, "window_padding": "before_shift", "num_classes": 0}),
    "vit_jax": ("vit_jax", "vit_jax", {"gelu": "tanh"}),
    "big_vision, class token": ("big_vision", "big_vision", {"gelu": "tanh", **CLASS_ONLY}),
    "big_vision, MAP": ("big_vision", "big_vision", {"gelu": "tanh", "pooling": "map"}),
    "big_vision, SigLIP": ("big_vision", "big_vision", {"gelu": "tanh", "pooling": "map", "num_classes": 0}),
}


@pytest.mark.parametrize("case", CASES)
def test_out_and_back(tmp_path: Path, case: str) -> None:
    target, layout, settings = CASES[case]
    stored = write_random_run(tmp_path / "run", **settings)
    exported = api.export(tmp_path / "run", layout=target)
    assert exported.layout == layout
    ran = {comparison.against for comparison in exported.comparisons if comparison.skipped is None}
    library = "transformers" if target == "hf" else "timm"
    assert library in ran, "the library itself ran what was written"
    assert f"the formulas of {layout}" in ran or layout not in ("timm", "hf_vit", "hf_siglip", "hf_clip", *GOOGLE)
    assert all(comparison.within(ROUNDING) for comparison in exported.comparisons), exported.comparisons
    source = exported.folder / "model.npz" if target in GOOGLE else exported.folder
    imported = api.import_weights(source, tmp_path / "back")
    assert imported.layout == layout
    assert all(comparison.within(ROUNDING) for comparison in imported.comparisons), imported.comparisons
    assert model_of(imported.model) == model_of(stored.model_dump(mode="json"))
    there, back = stored_tensors(tmp_path / "run"), stored_tensors(tmp_path / "back")
    assert there.keys() == back.keys()
    assert all(torch.equal(value, back[name]) for name, value in there.items())


def model_of(sections: dict[str, Any]) -> dict[str, Any]:
    """The settings that make the function; one number for all channels is the same as one for each."""
    model = StoredModel.model_validate(sections).model
    values = model.model_dump(mode="json", exclude={"resampling", "layer_scale"})
    same = {"class_token": model.shape.class_token, "image_mean": sorted(set(model.image_mean)), "image_std": sorted(set(model.image_std))}
    return values | same | {"has_layer_scale": getattr(model, "layer_scale", None) is not None}


FOLDED: dict[str, tuple[Format, dict[str, Any]]] = {
    "timm, registers": ("timm", {"num_registers": 2}),
    "big_vision, class row": ("big_vision", {"gelu": "tanh"}),
    "hf, no class row": ("hf", CLASS_ONLY),
    "vit_jax, fixed": ("vit_jax", {"gelu": "tanh", "positions": "sincos2d_mae"}),
}


@pytest.mark.parametrize("case", FOLDED)
def test_a_row_for_the_class_token_comes_or_goes_without_a_change_of_the_sum(tmp_path: Path, case: str) -> None:
    target, settings = FOLDED[case]
    write_random_run(tmp_path / "run", **settings)
    exported = api.export(tmp_path / "run", layout=target)
    assert all(comparison.within(ROUNDING) and comparison.skipped is None for comparison in exported.comparisons), exported.comparisons


def test_what_nobody_can_hold_is_said_with_who_comes_near(tmp_path: Path) -> None:
    write_random_run(tmp_path / "run", parallel=True)
    with pytest.raises(CheckpointError, match=r"timm cannot hold this model .*model\.parallel is True.* can be exported to: onnx$"):
        api.export(tmp_path / "run", layout="timm")
    write_random_run(tmp_path / "halting", halting={})
    with pytest.raises(CheckpointError, match=r"timm cannot hold this model .*model\.halting is .* can be exported to: none$"):
        api.export(tmp_path / "halting", layout="timm")
    write_random_run(tmp_path / "other", num_registers=2)
    with pytest.raises(CheckpointError, match=r"hf_dinov2_with_registers: it always has layer scale.* can be exported to: timm, onnx$"):
        api.export(tmp_path / "other", layout="hf")
