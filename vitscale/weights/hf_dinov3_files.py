"""Folders of Hugging Face's DINOv3, whose names have no root, and the model that config.json means."""

# D width, C channels, P patch side

from collections.abc import Mapping
from typing import Any

from vitscale.config import CheckpointError
from vitscale.weights.family import Described, Entry, Family, Settings, count_blocks, shape_of
from vitscale.weights.forms import Shape

_KERNEL = "embeddings.patch_embeddings.weight"


def _entries(shapes: Mapping[str, Shape]) -> dict[str, Entry]:
    """With the names on disk; in memory transformers v5 has `model.` before those of the blocks."""
    return {source.removeprefix("model."): Entry(source=source, shape=shape) for source, shape in shapes.items()}


def _describe(shapes: Mapping[str, Shape], *, settings: Settings, where: str) -> Described:
    config = settings.get("config.json", {})
    if config.get("model_type") != "dinov3_vit":
        raise CheckpointError(
            f"{where}: these are tensors of Hugging Face's DINOv3, whose heads are in its config.json, of type 'dinov3_vit', and"
            f" {'there is none' if not config else 'it is of type ' + repr(config.get('model_type'))}: give the folder that holds both"
        )
    width, channels, patch_size, _ = shape_of(shapes, _KERNEL, num_dims=4, where=where)
    tokens = shape_of(shapes, "embeddings.register_tokens", num_dims=3, where=where)
    images = settings.get("preprocessor_config.json", {})
    is_gated = "layer.0.mlp.gate_proj.weight" in shapes
    model: dict[str, Any] = {
        "kind": "vit",
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": config.get("image_size", 224),
        "width": width,
        "depth": count_blocks(shapes, "layer.{i}.norm1.weight"),
        "num_heads": config.get("num_attention_heads", 6),
        "mlp": "swiglu" if is_gated else "gelu",
        "mlp_width": shape_of(shapes, "layer.0.mlp.up_proj.weight", num_dims=2, where=where)[0],
        "layer_norm_eps": float(config.get("layer_norm_eps", 1e-5)),
        "qkv_bias": "no_key" if "layer.0.attention.q_proj.bias" in shapes else "none",
        "proj_bias": "layer.0.attention.o_proj.bias" in shapes,
        "mlp_bias": "layer.0.mlp.up_proj.bias" in shapes,
        "layer_scale": 1e-5,
        "num_registers": tokens[1],
        "positions": "none",
        "rotary": {"kind": "dinov3", "base": float(config.get("rope_theta", 100.0))},
        "pooling": "cls",
        "image_mean": list(map(float, images.get("image_mean") or (0.485, 0.456, 0.406)[:channels])),
        "image_std": list(map(float, images.get("image_std") or (0.229, 0.224, 0.225)[:channels])),
    }
    assumed = () if images.get("image_mean") else ("images are normalised with ImageNet's mean and deviation, as DINOv3's are",)
    return Described(layout="hf_dinov3_vit", model=model, head=None, positions="timm", class_row=False, assumed=assumed)


HF_DINOV3 = Family(
    claims=lambda shapes: _KERNEL in shapes and any("layer.0.attention.q_proj" in name for name in shapes),
    entries=_entries,
    describe=_describe,
)
