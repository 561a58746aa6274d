"""The config.json from which Hugging Face transformers build a model."""

from typing import Any

from vitscale.models import SwinConfig, ViTConfig
from vitscale.nn.relative_bias import RelativeBiasConfig
from vitscale.nn.rope import Dinov3RopeConfig
from vitscale.weights.rules import HeldConfig, Layout
from vitscale.weights.targets import dinov2_ratio


def hf_config(model: HeldConfig, *, layout: Layout, num_classes: int) -> dict[str, Any]:
    """Its content for a model that the layout holds, with a classifier of so many classes or (0) without."""
    if isinstance(model, SwinConfig):
        return _swin(model, layout=layout, num_classes=num_classes)
    assert isinstance(model, ViTConfig), "the layouts of Hugging Face hold no other kind"
    shape = model.shape
    common = {
        "model_type": layout.removeprefix("hf_"),
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
        "hidden_act": "silu" if shape.is_gated else _activation(model),
        "layer_norm_eps": model.layer_norm_eps,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "num_channels": shape.num_channels,
    }
    if layout == "hf_siglip":
        return _siglip(model, common=common, num_classes=num_classes)
    if layout == "hf_clip":
        clip = {"model_type": "clip_vision_model", "intermediate_size": shape.mlp_width, "attention_dropout": 0.0}
        return {"architectures": ["CLIPVisionModel"], **common, **clip}
    if layout == "hf_dinov3_vit":
        return {"architectures": ["DINOv3ViTModel"], **common, **_dinov3(model)}
    own: dict[str, Any] = {"intermediate_size": shape.mlp_width, "qkv_bias": model.qkv_bias == "all"}
    if layout.startswith("hf_dinov2"):
        own = _dinov2(model)
    elif layout == "hf_beit":
        own = {"intermediate_size": shape.mlp_width, **_beit(model)}
    return {
        "architectures": [_classifier(layout) if num_classes else f"{_CLASSES[layout]}Model"],
        **common,
        **own,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **_labels(num_classes),
    }


_CLASSES: dict[Layout, str] = {
    "hf_vit": "ViT",
    "hf_deit": "DeiT",
    "hf_dinov2": "Dinov2",
    "hf_dinov2_with_registers": "Dinov2WithRegisters",
    "hf_beit": "Beit",
    "hf_swin": "Swin",
    "hf_swinv2": "Swinv2",
}


def _classifier(layout: Layout) -> str:
    return _CLASSES[layout] + ("ForImageClassificationWithTeacher" if layout == "hf_deit" else "ForImageClassification")


def _activation(model: HeldConfig) -> str:
    return {"exact": "gelu", "tanh": "gelu_pytorch_tanh", "quick": "quick_gelu"}[model.gelu]


def _dinov2(model: ViTConfig) -> dict[str, Any]:
    return {
        "mlp_ratio": dinov2_ratio(model),
        "use_swiglu_ffn": model.shape.is_gated,
        "layerscale_value": model.layer_scale,
        "qkv_bias": model.qkv_bias == "all",
        **({"num_register_tokens": model.num_registers} if model.num_registers else {"use_mask_token": False}),
    }


def _dinov3(model: ViTConfig) -> dict[str, Any]:
    assert isinstance(model.rotary, Dinov3RopeConfig), "the layout holds no other"
    has_bias = model.qkv_bias == "no_key"
    return {
        "intermediate_size": model.shape.mlp_width,
        "query_bias": has_bias,
        "key_bias": False,
        "value_bias": has_bias,
        "proj_bias": model.proj_bias,
        "mlp_bias": model.mlp_bias,
        "layerscale_value": model.layer_scale,
        "use_gated_mlp": model.shape.is_gated,
        "num_register_tokens": model.num_registers,
        "rope_theta": model.rotary.base,
        "attention_dropout": 0.0,
    }


def _beit(model: ViTConfig) -> dict[str, Any]:
    is_relative = isinstance(model.position_bias, RelativeBiasConfig)
    is_shared = isinstance(model.position_bias, RelativeBiasConfig) and model.position_bias.shared
    return {
        "use_absolute_position_embeddings": model.positions != "none",
        "use_relative_position_bias": is_relative and not is_shared,
        "use_shared_relative_position_bias": is_shared,
        "use_mean_pooling": model.pooling == "mean",
        "use_mask_token": False,
        "layer_scale_init_value": model.layer_scale or 0.0,
        "drop_path_rate": 0.0,
    }


def _siglip(model: ViTConfig, *, common: dict[str, Any], num_classes: int) -> dict[str, Any]:
    vision = {
        **common,
        "model_type": "siglip_vision_model",
        "intermediate_size": model.shape.mlp_width,
        "vision_use_head": model.pooling == "map",
        "attention_dropout": 0.0,
    }
    if not num_classes:
        return {"architectures": ["SiglipVisionModel"], **vision}
    return {"architectures": ["SiglipForImageClassification"], "model_type": "siglip", "vision_config": vision, **_labels(num_classes)}


def _swin(model: SwinConfig, *, layout: Layout, num_classes: int) -> dict[str, Any]:
    shape = model.shape
    pretrained = {"pretrained_window_sizes": list(model.pretrained_window_sizes or (0,) * len(shape.stages))} if model.version == 2 else {}
    return {
        "architectures": [_classifier(layout) if num_classes else f"{_CLASSES[layout]}Model"],
        "model_type": layout.removeprefix("hf_"),
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "num_channels": shape.num_channels,
        "embed_dim": shape.stages[0].width,
        "depths": [stage.depth for stage in shape.stages],
        "num_heads": [stage.num_heads for stage in shape.stages],
        "window_size": model.window_size or (7 if model.version == 1 else 8),
        "mlp_ratio": model.mlp_ratio,
        "qkv_bias": True,
        "hidden_act": _activation(model),
        "layer_norm_eps": model.layer_norm_eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        **pretrained,
        **_labels(num_classes),
    }


def _labels(num_classes: int) -> dict[str, Any]:
    labels = {str(index): f"LABEL_{index}" for index in range(num_classes)}
    return {"id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}
