"""What a layout can hold, and as what its programs compute it."""

from typing import Any

import pytest

from vitscale.config import CheckpointError, decode
from vitscale.models import HieraConfig, ModelConfig, SwinConfig, ViTConfig
from vitscale.weights.rules import Layout
from vitscale.weights.targets import LAYOUTS, Format, check_layout, choose_layout, dinov2_ratio, project_form

SIZES: dict[str, Any] = {"image_size": 12, "patch_size": 4, "width": 32, "depth": 2, "num_heads": 4, "mlp_width": 48, "num_channels": 3}


def model(**changes: Any) -> ViTConfig:
    return ViTConfig(**(SIZES | changes))


def chosen(config: ModelConfig, target: Format, *, num_classes: int = 5, has_pre_logits: bool = False) -> Layout:
    return choose_layout(config, target=target, num_classes=num_classes, has_pre_logits=has_pre_logits, where="run")[0]


@pytest.mark.parametrize("target", LAYOUTS)
def test_a_plain_model_fits_everywhere_also_with_what_matters_in_training_only(target: Format) -> None:
    assert chosen(model(stochastic_depth=0.1, dropout=0.1), target) == LAYOUTS[target][0]
    assert chosen(model(flexible_patches=(2, 6)), target) == LAYOUTS[target][0]
    assert chosen(model(naflex={"sequence_lengths": (9,)}), target) == LAYOUTS[target][0]


def test_the_first_layout_that_holds_it_is_taken() -> None:
    assert chosen(model(distillation_token=True), "hf") == "hf_deit"
    assert chosen(model(layer_scale=1e-5, mlp_width=64), "hf") == "hf_dinov2"
    assert chosen(model(pooling="mean"), "hf") == "hf_siglip"
    assert chosen(model(pooling="map"), "hf", num_classes=0) == "hf_siglip"


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"hf_siglip: its classifier takes the mean .*exported to: timm, big_vision, onnx$"):
        chosen(model(pooling="map"), "hf")
    with pytest.raises(CheckpointError, match=r"no layer before the head .*exported to: vit_jax, big_vision, onnx$"):
        chosen(model(), "timm", has_pre_logits=True)
    with pytest.raises(CheckpointError, match=r"model\.class_token is set, without being pooled"):
        chosen(model(pooling="mean", class_token=True), "vit_jax")
    with pytest.raises(CheckpointError, match=r"model\.image_size 12 is none of model\.patch_size 5"):
        chosen(model(patch_size=5, flexible_patches=(2, 6)), "timm")

    hiera = decode(HieraConfig, values={"variant": "Hiera-T", "image_size": 224}, source="test")
    with pytest.raises(CheckpointError, match=r"it has no model of kind hiera.* exported to: timm, onnx$"):
        chosen(hiera, "hf")
    swin = decode(SwinConfig, values={"variant": "Swin-T", "image_size": 200, "window_padding": "after_shift"}, source="test")
    with pytest.raises(CheckpointError, match=r"hf_swin: model\.window_padding is after_shift, and it knows before_shift.* timm, onnx$"):
        chosen(swin, "hf")
    assert chosen(swin, "timm") == "timm_swin"


def test_a_setting_that_no_layout_carries_is_refused() -> None:
    class Grown(ViTConfig):
        grown: bool = False

    assert check_layout(Grown(**SIZES), layout="timm", num_classes=5, where="run")
    with pytest.raises(CheckpointError, match=r"model\.grown is True, and it knows False"):
        check_layout(Grown(**SIZES, grown=True), layout="timm", num_classes=5, where="run")


def test_googles_programs_know_one_gelu_and_one_epsilon() -> None:
    found = project_form(model(layer_norm_eps=1e-12), layout="big_vision")
    assert (found.gelu, found.layer_norm_eps) == ("tanh", 1e-6)
    assert project_form(model(), layout="timm") == model()


def test_dinov2_computes_the_hidden_width_from_a_whole_number() -> None:
    giant = ViTConfig(variant="DINOv2-g/14", image_size=224)
    assert dinov2_ratio(giant) == 4
    assert dinov2_ratio(model(mlp_width=128)) == 4
    assert dinov2_ratio(model(mlp_width=48)) is None


def test_towers_of_clip_go_where_there_is_a_norm_before_the_blocks() -> None:
    clip = model(embedding_norm=True, patch_bias=False, gelu="quick")
    assert chosen(clip, "timm") == "timm"
    assert chosen(clip, "hf", num_classes=0) == "hf_clip"
    with pytest.raises(CheckpointError, match="hf_clip: its classifier takes the mean of the patches"):
        chosen(clip, "hf")
    with pytest.raises(CheckpointError, match=r"its patches have a bias where tokens are not normalised before the blocks"):
        chosen(model(patch_bias=False), "timm")
    with pytest.raises(CheckpointError, match=r"model\.patch_bias is False, and it knows True"):
        chosen(clip, "vit_jax")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"halting": {}}, r"model\.halting lets tokens leave"),
        ({"token_merging": {"per_block": 2}, "pooling": "mean"}, r"model\.token_merging sorts"),
        ({"pooling": "none"}, r"model\.pooling none"),
    ],
)
def test_what_is_no_graph_is_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"onnx cannot hold this model .*{reason}"):
        chosen(model(**changes), "onnx", num_classes=0)


def test_a_graph_is_made_of_models_that_no_project_has() -> None:
    odd = model(rotary={"kind": "mixed"}, pooling="map", num_registers=2, parallel=True)
    assert chosen(odd, "onnx", has_pre_logits=True) == "onnx"
    with pytest.raises(CheckpointError, match=r"exported to: onnx$"):
        chosen(odd, "timm")
