"""Folders of Hugging Face's CLIP, of which the image tower is read, and the model that config.json means."""

# D width, C channels, P patch side, N tokens

from collections.abc import Mapping
from typing import Any

from vitscale.config import CheckpointError
from vitscale.weights.family import Described, Entry, Family, Settings, clip_statistics, count_blocks, shape_of
from vitscale.weights.forms import Shape
from vitscale.weights.hf_files import hf_gelu

_ROOT = "vision_model"
_TOKEN = "embeddings.class_embedding"
_TYPES = ("clip", "clip_vision_model")


def _entries(shapes: Mapping[str, Shape]) -> dict[str, Entry]:
    """With the names of a whole CLIP; an image tower alone may have them without the root."""
    root = f"{_ROOT}." if _TOKEN in shapes else ""
    return {f"{root}{source}": Entry(source=source, shape=shape) for source, shape in shapes.items()}


def _describe(shapes: Mapping[str, Shape], *, settings: Settings, where: str) -> Described:
    whole = settings.get("config.json", {})
    if whole.get("model_type") not in _TYPES:
        raise CheckpointError(
            f"{where}: these are tensors of Hugging Face's CLIP, whose heads and GELU are in its config.json, of type"
            f" {' or '.join(map(repr, _TYPES))}, and {'there is none' if not whole else 'it is of type ' + repr(whole.get('model_type'))}:"
            " give the folder that holds both"
        )
    config = whole.get("vision_config", whole)
    width, channels, patch_size, _ = shape_of(shapes, f"{_ROOT}.embeddings.patch_embedding.weight", num_dims=4, where=where)
    images = settings.get("preprocessor_config.json", {})
    assumed = (
        [] if images.get("image_mean") else ["images are normalised with CLIP's mean and deviation; there is no preprocessor_config.json"]
    )
    if "visual_projection.weight" in shapes:
        assumed.append("the projection to image embeddings is left out, and so is any text tower: the model gives what is projected")
    model: dict[str, Any] = {
        "kind": "vit",
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": config.get("image_size", 224),
        "width": width,
        "depth": count_blocks(shapes, f"{_ROOT}.encoder.layers.{{i}}.layer_norm1.weight"),
        "num_heads": config.get("num_attention_heads", 12),
        "mlp_width": shape_of(shapes, f"{_ROOT}.encoder.layers.0.mlp.fc1.weight", num_dims=2, where=where)[0],
        "gelu": hf_gelu(config.get("hidden_act", "quick_gelu"), where=where),
        "layer_norm_eps": float(config.get("layer_norm_eps", 1e-5)),
        "patch_bias": False,
        "embedding_norm": True,
        "pooling": "cls",
        **clip_statistics(channels, mean=images.get("image_mean"), std=images.get("image_std")),
    }
    aside = ("visual_projection.*", "text_projection.*")
    return Described(layout="hf_clip", model=model, head=None, positions="hf", assumed=tuple(assumed), set_aside=aside)


HF_CLIP = Family(
    claims=lambda shapes: _TOKEN in shapes or f"{_ROOT}.{_TOKEN}" in shapes,
    entries=_entries,
    describe=_describe,
)
