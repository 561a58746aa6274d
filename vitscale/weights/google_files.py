"""Files of google-research/vision_transformer and google-research/big_vision: flax names in an .npz, and the model they mean.

Both run GELU in its tanh form (flax's default) with a layer norm epsilon of 1e-6, and scale images to [-1, 1].
"""

# P patch side, C channels, D width, H heads, K head width, L depth

import re
from collections.abc import Mapping
from typing import Any

from vitscale.config import CheckpointError
from vitscale.nn.resnet_stem import ResNetStemConfig
from vitscale.weights.family import Described, Entry, Family, count_blocks, image_side, is_square, resnet_stem, shape_of
from vitscale.weights.forms import Shape
from vitscale.weights.rules import Layout

_KERNEL = "embedding/kernel"
_ROOT = "conv_root/kernel"
_GROUP_NORM = re.compile(r"(^|/)gn(\d|_root|_proj)/(scale|bias)$")
_PREFIXES = ("opt/target/", "params/img/", "params/", "")
"""Training states of vit_jax and old big_vision; two-tower models of big_vision; big_vision; released files."""

_STACK = re.compile(r"^Transformer/encoderblock/")
_TABLES: dict[Layout, str] = {"vit_jax": "Transformer/posembed_input/pos_embedding", "big_vision": "pos_embedding"}


def google_prefix(shapes: Mapping[str, Shape]) -> str | None:
    """What stands before the names of the image model; None where there is none of Google's."""
    return next((prefix for prefix in _PREFIXES if f"{prefix}{_KERNEL}" in shapes), None)


def _entries(shapes: Mapping[str, Shape]) -> dict[str, Entry]:
    """Without the prefix, and with the blocks that a scan has stacked (L, ...) apart."""
    prefix = google_prefix(shapes)
    assert prefix is not None, "claimed names"
    entries = {}
    for source, shape in shapes.items():
        if not source.startswith(prefix):
            continue
        name = source.removeprefix(prefix)
        if _STACK.match(name) and shape:
            for index in range(shape[0]):
                apart = _STACK.sub(f"Transformer/encoderblock_{index}/", name)
                entries[apart] = Entry(source=source, shape=shape[1:], index=index)
        else:
            # Some files keep the vectors of group norms as (1, 1, 1, channels).
            is_vector = _GROUP_NORM.search(name) is not None and shape[:-1] == (1, 1, 1)
            entries[name] = Entry(source=source, shape=shape[-1:] if is_vector else shape)
    return entries


def _describe(shapes: Mapping[str, Shape], *, settings: object, where: str) -> Described:  # noqa: ARG001  (a Family's)
    layout: Layout = "big_vision" if any("/MultiHeadDotProductAttention_0/" in name for name in shapes) else "vit_jax"
    attention, mlp = ("MultiHeadDotProductAttention_0", "MlpBlock_0") if layout == "big_vision" else _VIT_JAX_MODULES
    patch_size, columns, channels, width = shape_of(shapes, _KERNEL, num_dims=4, where=where)
    if columns != patch_size:
        raise CheckpointError(f"{where}: its patches are {patch_size} x {columns} pixels, and patches here are square")
    stem = _stem(shapes, where=where)
    if stem is not None:
        patch_size, channels = patch_size * stem.stride, shapes[_ROOT][2]
    query_DHK = shape_of(shapes, f"Transformer/encoderblock_0/{attention}/query/kernel", num_dims=3, where=where)
    dense = shape_of(shapes, f"Transformer/encoderblock_0/{mlp}/Dense_0/kernel", num_dims=2, where=where)
    model: dict[str, Any] = {
        "kind": "vit",
        "num_channels": channels,
        "patch_size": patch_size,
        "width": width,
        "depth": count_blocks(shapes, f"Transformer/encoderblock_{{i}}/{mlp}/Dense_0/kernel"),
        "num_heads": query_DHK[1],
        "mlp_width": dense[1],
        "gelu": "tanh",
        "layer_norm_eps": 1e-6,
        "pooling": _pooling(shapes),
        "prefix_positions": True,
        "image_mean": [0.5],
        "image_std": [0.5],
    }
    if stem is not None:
        model["stem"] = stem.model_dump(mode="json")
    head = {"num_classes": shapes["head/kernel"][-1]} if "head/kernel" in shapes else None
    if head is not None and "pre_logits/kernel" in shapes:
        head["pre_logits"] = shapes["pre_logits/kernel"][-1]
    assumed = ["GELU is its tanh form, which flax computes", "norms add 1e-6, and images are scaled to [-1, 1], as in Google's programs"]
    table = next((name for name in _TABLES.values() if name in shapes), None)
    if table is None:
        # A fixed table is no parameter, so the file has none, and with it goes the size of the images.
        model["positions"] = "sincos2d_big_vision"
        assumed.append("no table of positions: they are sines and cosines, as big_vision's sincos2d")
        return Described(layout=layout, model=model, head=head, positions="google", assumed=tuple(assumed))
    num_tokens = shape_of(shapes, table, num_dims=3, where=where)[1]
    has_own_row = "cls" in shapes and is_square(num_tokens - 1)
    model["prefix_positions"] = has_own_row or "cls" not in shapes
    model["image_size"] = image_side(num_tokens - int(has_own_row), patch_size=patch_size, where=where)
    return Described(
        layout=layout,
        model=model,
        head=head,
        positions="google",
        class_row=model["prefix_positions"],
        assumed=tuple(assumed),
    )


def _stem(shapes: Mapping[str, Shape], *, where: str) -> ResNetStemConfig | None:
    """The ResNet before the patches, whose stages and units count from 1."""
    if _ROOT not in shapes:
        return None
    *_, width = shape_of(shapes, _ROOT, num_dims=4, where=where)
    units: list[int] = []
    while count := count_blocks(shapes, f"block{len(units) + 1}/unit{{i}}/conv1/kernel", first=1):
        units.append(count)
    return resnet_stem(units=units, width=width, epsilons="google", where=where)


def _pooling(shapes: Mapping[str, Shape]) -> str:
    if "MAPHead_0/probe" in shapes:
        return "map"
    return "cls" if "cls" in shapes else "mean"


_VIT_JAX_MODULES = ("MultiHeadDotProductAttention_1", "MlpBlock_3")

GOOGLE = Family(claims=lambda shapes: google_prefix(shapes) is not None, entries=_entries, describe=_describe)
