"""Folders of Hugging Face transformers: names on disk and in memory, and the model that config.json means."""

# D width, C channels, P patch side, N tokens

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vitscale.config import CheckpointError
from vitscale.nn.resample import PositionMode
from vitscale.weights.family import Described, Entry, Family, Settings, count_blocks, shape_of
from vitscale.weights.forms import Shape
from vitscale.weights.rules import Layout

_KERNEL = "embeddings.patch_embeddings.projection.weight"
_SIGLIP_KERNEL = "vision_model.embeddings.patch_embedding.weight"
_ACTIVATIONS = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh", "quick_gelu": "quick"}
_PARTS = {"q": "query", "k": "key", "v": "value"}
_IN_MEMORY: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\.layers\.(\d+)\.mlp\.fc1\."), r".layers.\1.intermediate.dense."),
    (re.compile(r"\.layers\.(\d+)\.mlp\.fc2\."), r".layers.\1.output.dense."),
    (re.compile(r"^(vit|deit)\.layers\."), r"\1.encoder.layer."),
    (re.compile(r"\.attention\.([qkv])_proj\."), lambda match: f".attention.attention.{_PARTS[match[1]]}."),
    (re.compile(r"\.attention\.o_proj\."), ".attention.output.dense."),
)
"""Names of transformers v5 in memory, which a state dict saved by hand has, to those on disk."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A model of transformers by the root of its names: what config.json may call it, and what it leaves out where that is the default."""

    layout: Layout
    model_types: tuple[str, ...]
    kernel: str
    block: str
    fc1: str
    layer_norm_eps: float
    activation: str
    resampling: PositionMode


def _vit_like(root: Layout, *, model_types: tuple[str, ...], resampling: PositionMode) -> _Kind:
    name = root.removeprefix("hf_")
    return _Kind(
        layout=root,
        model_types=model_types,
        kernel=f"{name}.{_KERNEL}",
        block=f"{name}.encoder.layer.{{i}}",
        fc1="mlp.fc1" if name.startswith("dinov2") else "intermediate.dense",
        layer_norm_eps=1e-6 if name.startswith("dinov2") else 1e-12,
        activation="gelu",
        resampling=resampling,
    )


_KINDS: dict[str, _Kind] = {
    "vit": _vit_like("hf_vit", model_types=("vit", "vit_mae"), resampling="hf"),
    "deit": _vit_like("hf_deit", model_types=("deit",), resampling="hf"),
    "dinov2": _vit_like("hf_dinov2", model_types=("dinov2",), resampling="hf"),
    "dinov2_with_registers": _vit_like("hf_dinov2_with_registers", model_types=("dinov2_with_registers",), resampling="dinov2_reg"),
    "beit": _vit_like("hf_beit", model_types=("beit",), resampling="hf"),
    "vision_model": _Kind(
        layout="hf_siglip",
        model_types=("siglip", "siglip_vision_model"),
        kernel=_SIGLIP_KERNEL,
        block="vision_model.encoder.layers.{i}",
        fc1="mlp.fc1",
        layer_norm_eps=1e-6,
        activation="gelu_pytorch_tanh",
        resampling="hf",
    ),
}


def _entries(shapes: Mapping[str, Shape]) -> dict[str, Entry]:
    """With the names on disk of a classifier; a model without one has them without the root."""
    root = _root(shapes)
    entries = {}
    for source, shape in shapes.items():
        is_bare = root is not None and not source.startswith((f"{root}.", "classifier.", "decoder.", "text_model.", "logit_"))
        name = f"{root}.{source}" if is_bare and _is_without_root(shapes) else source
        if root != "vision_model":
            for pattern, replacement in _IN_MEMORY:
                name = pattern.sub(replacement, name)
        entries[name] = Entry(source=source, shape=shape)
    return entries


def _root(shapes: Mapping[str, Shape]) -> str | None:
    """What stands before the names of the backbone, or would; None for another project's names."""
    found = next((root for root, kind in _KINDS.items() if kind.kernel in shapes), None)
    if found is not None or not _is_without_root(shapes):
        return found
    if "embeddings.patch_embedding.weight" in shapes:
        return "vision_model"
    if "embeddings.register_tokens" in shapes:
        return "dinov2_with_registers"
    if "embeddings.distillation_token" in shapes:
        return "deit"
    if any(".lambda_1" in name for name in shapes):
        return "beit"
    return "dinov2" if any("layer_scale1." in name for name in shapes) else "vit"


def _is_without_root(shapes: Mapping[str, Shape]) -> bool:
    return _KERNEL in shapes or "embeddings.patch_embedding.weight" in shapes


def _describe(shapes: Mapping[str, Shape], *, settings: Settings, where: str) -> Described:
    root = _root(shapes)
    assert root is not None, "claimed names"
    kind = _KINDS[root]
    config = _vision_config(settings, kind=kind, where=where)
    width, channels, patch_size, _ = shape_of(shapes, kind.kernel, num_dims=4, where=where)
    block = kind.block.format(i=0)
    is_gated = f"{block}.mlp.weights_in.weight" in shapes
    hidden = shape_of(shapes, f"{block}.mlp.weights_in.weight" if is_gated else f"{block}.{kind.fc1}.weight", num_dims=2, where=where)[0]
    images = settings.get("preprocessor_config.json", {})
    query = f"{block}.self_attn.q_proj" if root == "vision_model" else f"{block}.attention.attention.query"
    model: dict[str, Any] = {
        "kind": "vit",
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": config.get("image_size", 224),
        "width": width,
        "depth": count_blocks(shapes, f"{kind.block}.{'layer_norm1' if root == 'vision_model' else _first_norm(root)}.weight"),
        "num_heads": config.get("num_attention_heads", 12),
        "mlp": "swiglu" if is_gated else "gelu",
        "mlp_width": hidden // 2 if is_gated else hidden,
        "layer_norm_eps": float(config.get("layer_norm_eps", kind.layer_norm_eps)),
        "qkv_bias": "all" if f"{query}.bias" in shapes else "none",
        "layer_scale": 1e-5 if f"{block}.layer_scale1.lambda1" in shapes else None,
        "distillation_token": root == "deit",
        "num_registers": _num_registers(shapes, root=root),
        "pooling": _siglip_pooling(shapes) if root == "vision_model" else "cls",
        "image_mean": list(map(float, images.get("image_mean") or [0.5])),
        "image_std": list(map(float, images.get("image_std") or [0.5])),
    }
    if root == "beit":
        model |= _beit(shapes, config)
    if not is_gated:
        model["gelu"] = hf_gelu(config.get("hidden_act", kind.activation), where=where)
    classes = next((shapes[name] for name in ("classifier.weight", "cls_classifier.weight") if shapes.get(name)), None)
    return Described(
        layout=kind.layout,
        model=model,
        head=None if classes is None else {"num_classes": classes[0]},
        positions="mae" if config.get("model_type") == "vit_mae" else kind.resampling,
        assumed=() if images.get("image_mean") else ("images are scaled to [-1, 1], the default; there is no preprocessor_config.json",),
        # A classifier of transformers' SigLIP takes the mean of the tokens, and its attention pooling is not run.
        set_aside=("*relative_position_index", *(("vision_model.head.*",) if root == "vision_model" and classes is not None else ())),
    )


def _beit(shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> dict[str, Any]:
    """What BEiT has and ViT has not."""
    table = "relative_position_bias.relative_position_bias_table"
    own, shared = f"beit.encoder.layer.0.attention.attention.{table}", f"beit.encoder.{table}"
    is_mean = config.get("use_mean_pooling", True)
    attention = "beit.encoder.layer.0.attention.attention"
    values: dict[str, Any] = {
        "layer_scale": 1e-5 if "beit.encoder.layer.0.lambda_1" in shapes else None,
        "qkv_bias": "no_key" if f"{attention}.query.bias" in shapes else "none",
        "class_token": True,
        "pooling": "mean" if is_mean else "cls",
        "norm_place": "pooled" if is_mean else "tokens",
    }
    if own in shapes or shared in shapes:
        values["position_bias"] = {"kind": "relative", "shared": shared in shapes}
    if "beit.embeddings.position_embeddings" not in shapes:
        values["positions"] = "none"
    return values


def hf_gelu(activation: str, *, where: str) -> str:
    """Our name of an activation. Raises `CheckpointError` for an unknown one."""
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"{where}: config.json names the activation {activation!r}; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[activation]


def _vision_config(settings: Settings, *, kind: _Kind, where: str) -> Mapping[str, Any]:
    """The part of config.json that is about images. Raises `CheckpointError` where there is none, or it is of another model."""
    config = settings.get("config.json")
    if config is None:
        raise CheckpointError(
            f"{where}: these are tensors of Hugging Face's {kind.model_types[0]}, whose heads, GELU and epsilon are in its config.json:"
            " give the folder that holds both"
        )
    if config.get("model_type") not in kind.model_types:
        known = ", ".join(name for found in _KINDS.values() for name in found.model_types)
        raise CheckpointError(
            f"{where}: config.json describes a model of type {config.get('model_type')!r}, and the tensors have the names of"
            f" {' or '.join(map(repr, kind.model_types))}; types that can be read: {known}"
        )
    vision: Mapping[str, Any] = config.get("vision_config", config)
    return vision


def _first_norm(root: str) -> str:
    return "norm1" if root.startswith("dinov2") else "layernorm_before"


def _num_registers(shapes: Mapping[str, Shape], *, root: str) -> int:
    tokens = shapes.get(f"{root}.embeddings.register_tokens", ())
    return tokens[1] if len(tokens) == 3 else 0


def _siglip_pooling(shapes: Mapping[str, Shape]) -> str:
    return "mean" if "classifier.weight" in shapes or "vision_model.head.probe" not in shapes else "map"


HF = Family(claims=lambda shapes: _root(shapes) is not None, entries=_entries, describe=_describe)
