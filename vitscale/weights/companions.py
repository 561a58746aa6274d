"""The JSON files beside exported weights, from which timm and Hugging Face transformers build the model and prepare images."""

from typing import Any

from vitscale.weights.hf_config import hf_config
from vitscale.weights.rules import HeldConfig, Layout
from vitscale.weights.targets import has_class_row
from vitscale.weights.timm_arguments import timm_architecture, timm_arguments


def companion_files(model: HeldConfig, *, layout: Layout, num_classes: int) -> dict[str, dict[str, Any]]:
    """What `timm.create_model("local-dir:...")` or `from_pretrained` read beside the weights, by name."""
    if layout.startswith("timm"):
        return {"config.json": _timm_config(model, layout=layout, num_classes=num_classes)}
    if layout.startswith("hf_"):
        return {"config.json": hf_config(model, layout=layout, num_classes=num_classes), "preprocessor_config.json": _hf_images(model)}
    return {"preprocessor_config.json": _hf_images(model)} if layout == "onnx" else {}


def _timm_config(model: HeldConfig, *, layout: Layout, num_classes: int) -> dict[str, Any]:
    shape, mean, std = model.shape, *_image_statistics(model)
    arguments = timm_arguments(model, layout=layout, class_row=has_class_row(model, layout=layout))
    return {
        "architecture": timm_architecture(model, layout=layout),
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
            "classifier": _classifiers(model),
        },
    }


def _classifiers(model: HeldConfig) -> str | list[str]:
    if model.kind != "vit":
        return "head.fc"
    return ["head", "head_dist"] if model.shape.is_distilled else "head"


def _hf_images(model: HeldConfig) -> dict[str, Any]:
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


def _image_statistics(model: HeldConfig) -> tuple[list[float], list[float]]:
    """Mean and deviation, one for each channel."""
    channels = model.num_channels
    mean, std = (list(value) * (channels if len(value) == 1 else 1) for value in (model.image_mean, model.image_std))
    return mean, std
