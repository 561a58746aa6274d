"""What another project can hold of a model: the settings that its layout leaves room for, and the files beside its weights."""

from typing import Any

from vitscale.config import CheckpointError, Config
from vitscale.models import ViTConfig
from vitscale.weights.installed import timm_arguments
from vitscale.weights.names import Layout

_CARRIED = frozenset(
    {
        "kind", "variant", "patch_size", "image_size", "num_channels", "num_heads", "width", "depth", "mlp_width", "gelu",
        "positions", "pooling", "layer_norm_eps", "image_mean", "image_std", "resampling",
    }
)  # fmt: skip
"""Settings of the backbone that every layout carries, in tensors or beside them."""
_CARRIED_POOLING = {"timm": ("cls", "mean"), "hf": ("cls",), "vit_jax": ("cls", "mean"), "big_vision": ("cls", "mean")}
_CARRIED_POSITIONS = ("learned", "sincos2d_mae", "sincos2d_big_vision")


def plain_vit(model: Config, *, layout: Layout, where: str) -> ViTConfig:
    """`model`, a plain ViT that `layout` can hold. Raises `CheckpointError` naming the setting that makes it another function."""
    if not isinstance(model, ViTConfig):
        raise CheckpointError(
            f"{where}: only a plain ViT can be exported, and this model is a {type(model).__name__.removesuffix('Config')}"
        )
    problem = _problem(model, layout=layout)
    if problem is not None:
        raise CheckpointError(f"{where}: the layout {layout} cannot hold this model: {problem}")
    return model


def _problem(model: ViTConfig, *, layout: Layout) -> str | None:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if name not in _CARRIED and value != field.get_default(call_default_factory=True):
            return f"model.{name} is {value!r}, which it has no place for"
    if model.positions not in _CARRIED_POSITIONS:
        return f"model.positions is {model.positions}"
    if model.pooling not in _CARRIED_POOLING[layout]:
        return f"model.pooling is {model.pooling}, and it knows {' and '.join(_CARRIED_POOLING[layout])}"
    return None


def project_form(model: ViTConfig, *, layout: Layout) -> ViTConfig:
    """`model` as the layout's programs compute it: Google's know one form of GELU and one epsilon, and a file cannot say otherwise."""
    if layout in ("vit_jax", "big_vision"):
        return model.model_copy(update={"gelu": "tanh", "layer_norm_eps": 1e-6})
    return model


def companion_files(model: ViTConfig, *, layout: Layout, num_classes: int) -> dict[str, dict[str, Any]]:
    """The JSON files that `timm.create_model("local-dir:...")` or `from_pretrained` read beside the weights, by name."""
    if layout == "timm":
        return {"config.json": _timm_config(model, num_classes=num_classes)}
    if layout == "hf":
        return {"config.json": _hf_config(model, num_classes=num_classes), "preprocessor_config.json": _hf_images(model)}
    return {}


def _timm_config(model: ViTConfig, *, num_classes: int) -> dict[str, Any]:
    shape, mean, std = model.shape, *_image_statistics(model)
    return {
        # Any registered name of a plain ViT will do: the arguments below replace all of its sizes.
        "architecture": "vit_base_patch16_224",
        "num_classes": num_classes,
        "num_features": shape.width,
        "model_args": timm_arguments(model),
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [shape.num_channels, shape.image_size, shape.image_size],
            "fixed_input_size": True,
            "mean": mean,
            "std": std,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "first_conv": None,
            "classifier": "head",
        },
    }


def _hf_config(model: ViTConfig, *, num_classes: int) -> dict[str, Any]:
    shape = model.shape
    labels = {str(index): f"LABEL_{index}" for index in range(num_classes)}
    return {
        "architectures": ["ViTForImageClassification" if num_classes else "ViTModel"],
        "model_type": "vit",
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.mlp_width,
        "hidden_act": "gelu" if model.gelu == "exact" else "gelu_pytorch_tanh",
        "layer_norm_eps": model.layer_norm_eps,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "num_channels": shape.num_channels,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": labels,
        "label2id": {label: int(index) for index, label in labels.items()},
    }


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
