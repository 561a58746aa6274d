"""The JSON files beside exported weights, from which timm and Hugging Face transformers build the model."""

from typing import Any

from vitscale.models import ViTConfig
from vitscale.nn.resnet_stem import ResNetStemConfig
from vitscale.weights.rules import Layout
from vitscale.weights.targets import dinov2_ratio, has_class_row, timm_hybrid


def companion_files(model: ViTConfig, *, layout: Layout, num_classes: int) -> dict[str, dict[str, Any]]:
    """What `timm.create_model("local-dir:...")` or `from_pretrained` read beside the weights, by name."""
    if layout == "timm":
        return {"config.json": _timm_config(model, num_classes=num_classes)}
    if layout.startswith("hf_"):
        return {"config.json": _hf_config(model, layout=layout, num_classes=num_classes), "preprocessor_config.json": _hf_images(model)}
    return {}


def timm_arguments(model: ViTConfig, *, class_row: bool) -> dict[str, Any]:
    """What timm's `VisionTransformer` is built with to compute what `model` does; values of JSON only. `class_row` says whether the
    table of positions has a row for the class token."""
    shape = model.shape
    # timm counts gate and value as the hidden width, and cuts the product off to a whole number.
    hidden = shape.mlp_width * (2 if shape.is_gated else 1)
    arguments: dict[str, Any] = {
        "img_size": shape.image_size,
        "patch_size": shape.kernel_side,
        "in_chans": shape.num_channels,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        "mlp_ratio": (hidden + 0.5) / shape.width,
        "class_token": shape.class_token,
        "reg_tokens": shape.num_registers,
        "no_embed_class": not class_row,
        "pos_embed": "none" if model.positions == "none" else "learn",
        "global_pool": {"cls": "token", "mean": "avg", "map": "map"}[model.pooling],
        "fc_norm": model.norm_place == "pooled",
        "qkv_bias": model.qkv_bias == "all",
        "proj_bias": model.proj_bias,
        "qk_norm": model.qk_norm,
        "scale_mlp_norm": model.mlp_norm,
        "init_values": model.layer_scale,
        "norm_layer": None if model.norm == "layer" else "rmsnorm",
    }
    if not shape.is_gated:
        arguments["act_layer"] = "gelu" if model.gelu == "exact" else "gelu_tanh"
    return arguments


def timm_architecture(model: ViTConfig) -> str:
    """A name that timm has registered for a model whose parts are classes and so no argument in JSON; its sizes are of no effect."""
    if isinstance(model.stem, ResNetStemConfig):
        hybrid = timm_hybrid(model.stem)
        assert hybrid is not None, "a layout was chosen that holds the stem"
        return hybrid
    if model.distillation_token:
        return "deit_base_distilled_patch16_224"
    return "vit_giant_patch14_dinov2" if model.shape.is_gated else "vit_base_patch16_224"


def _timm_config(model: ViTConfig, *, num_classes: int) -> dict[str, Any]:
    shape, mean, std = model.shape, *_image_statistics(model)
    arguments = timm_arguments(model, class_row=has_class_row(model, layout="timm"))
    return {
        "architecture": timm_architecture(model),
        "num_classes": num_classes,
        "num_features": shape.width,
        "model_args": {key: value for key, value in arguments.items() if value is not None},
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [shape.num_channels, shape.image_size, shape.image_size],
            "fixed_input_size": True,
            "mean": mean,
            "std": std,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "first_conv": None,
            "classifier": ["head", "head_dist"] if model.distillation_token else "head",
        },
    }


def _hf_config(model: ViTConfig, *, layout: Layout, num_classes: int) -> dict[str, Any]:
    shape = model.shape
    common = {
        "model_type": layout.removeprefix("hf_"),
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
        "hidden_act": "gelu" if model.gelu == "exact" else "gelu_pytorch_tanh",
        "layer_norm_eps": model.layer_norm_eps,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "num_channels": shape.num_channels,
    }
    if layout == "hf_siglip":
        return _siglip_config(model, common=common, num_classes=num_classes)
    classes = {"hf_vit": "ViT", "hf_deit": "DeiT", "hf_dinov2": "Dinov2", "hf_dinov2_with_registers": "Dinov2WithRegisters"}
    head = "ForImageClassificationWithTeacher" if layout == "hf_deit" else "ForImageClassification"
    return {
        "architectures": [classes[layout] + (head if num_classes else "Model")],
        **common,
        **(_dinov2_parts(model) if layout.startswith("hf_dinov2") else {"intermediate_size": shape.mlp_width}),
        "qkv_bias": model.qkv_bias == "all",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **_labels(num_classes),
    }


def _dinov2_parts(model: ViTConfig) -> dict[str, Any]:
    registers = {"num_register_tokens": model.num_registers} if model.num_registers else {"use_mask_token": False}
    return {"mlp_ratio": dinov2_ratio(model), "use_swiglu_ffn": model.shape.is_gated, "layerscale_value": model.layer_scale, **registers}


def _siglip_config(model: ViTConfig, *, common: dict[str, Any], num_classes: int) -> dict[str, Any]:
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


def _labels(num_classes: int) -> dict[str, Any]:
    labels = {str(index): f"LABEL_{index}" for index in range(num_classes)}
    return {"id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}


def _hf_images(model: ViTConfig) -> dict[str, Any]:
    mean, std = _image_statistics(model)
    side = model.image_size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def _image_statistics(model: ViTConfig) -> tuple[list[float], list[float]]:
    """Mean and deviation, one for each channel."""
    channels = model.num_channels
    mean, std = (list(value) * (channels if len(value) == 1 else 1) for value in (model.image_mean, model.image_std))
    return mean, std
