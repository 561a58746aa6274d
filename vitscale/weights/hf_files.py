"""Folders of Hugging Face transformers' ViT: its names, on disk and in memory, and the model that its config.json means."""

# D width, C channels, P patch side, N tokens

import re
from collections.abc import Callable, Mapping
from typing import Any

from vitscale.config import CheckpointError
from vitscale.weights.family import Described, Entry, Family, Settings, count_blocks, shape_of
from vitscale.weights.names import Shape

_KERNEL = "embeddings.patch_embeddings.projection.weight"
_ACTIVATIONS = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}
_PARTS = {"q": "query", "k": "key", "v": "value"}
_IN_MEMORY: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"^vit\.layers\.(\d+)\."), r"vit.encoder.layer.\1."),
    (re.compile(r"\.attention\.([qkv])_proj\."), lambda match: f".attention.attention.{_PARTS[match[1]]}."),
    (re.compile(r"\.attention\.o_proj\."), ".attention.output.dense."),
    (re.compile(r"\.mlp\.fc1\."), ".intermediate.dense."),
    (re.compile(r"\.mlp\.fc2\."), ".output.dense."),
)
"""Names of transformers v5 in memory, which a state dict saved by hand has, to those on disk."""


def _entries(shapes: Mapping[str, Shape]) -> dict[str, Entry]:
    """With the names on disk of `ViTForImageClassification`; a `ViTModel` has them without `vit.`."""
    is_bare = _KERNEL in shapes
    entries = {}
    for source, shape in shapes.items():
        name = f"vit.{source}" if is_bare and not source.startswith("classifier.") else source
        if name.startswith("vit.layers."):
            for pattern, replacement in _IN_MEMORY:
                name = pattern.sub(replacement, name)
        entries[name] = Entry(source=source, shape=shape)
    return entries


def _describe(shapes: Mapping[str, Shape], *, settings: Settings, where: str) -> Described:
    config = settings.get("config.json")
    if config is None:
        raise CheckpointError(
            f"{where}: these are tensors of Hugging Face's ViT, whose heads, GELU and epsilon are in its config.json: give the folder"
            " that holds both"
        )
    if config.get("model_type") != "vit":
        raise CheckpointError(f"{where}: config.json describes a model of type {config.get('model_type')!r}; only 'vit' is read")
    activation = config.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"{where}: config.json names the activation {activation!r}; known: {', '.join(_ACTIVATIONS)}")
    width, channels, patch_size, _ = shape_of(shapes, f"vit.{_KERNEL}", num_dims=4, where=where)
    hidden = shape_of(shapes, "vit.encoder.layer.0.intermediate.dense.weight", num_dims=2, where=where)
    images = settings.get("preprocessor_config.json", {})
    assumed = [] if images.get("image_mean") else ["images are scaled to [-1, 1], the default; there is no preprocessor_config.json"]
    model: dict[str, Any] = {
        "kind": "vit",
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": config.get("image_size", 224),
        "width": width,
        "depth": count_blocks(shapes, "vit.encoder.layer.{i}.intermediate.dense.weight"),
        "num_heads": config.get("num_attention_heads", 12),
        "mlp_width": hidden[0],
        "gelu": _ACTIVATIONS[activation],
        "layer_norm_eps": float(config.get("layer_norm_eps", 1e-12)),
        "pooling": "cls",
        "image_mean": list(map(float, images.get("image_mean") or [0.5])),
        "image_std": list(map(float, images.get("image_std") or [0.5])),
    }
    head = {"num_classes": shapes["classifier.weight"][0]} if shapes.get("classifier.weight") else None
    return Described(layout="hf", model=model, head=head, positions="hf", assumed=tuple(assumed))


HF = Family(claims=lambda shapes: _KERNEL in shapes or f"vit.{_KERNEL}" in shapes, entries=_entries, describe=_describe)
