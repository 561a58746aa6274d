"""State dicts of open_clip and OpenAI's CLIP, of which the image tower is read, and the model that they mean."""

# D width, C channels, P patch side, N tokens

from collections.abc import Mapping
from typing import Any

from vitscale.config import CheckpointError
from vitscale.weights.clip_rules import TOWER
from vitscale.weights.family import Described, Family, Settings, clip_statistics, count_blocks, image_side, plain_entries, shape_of
from vitscale.weights.forms import Shape
from vitscale.weights.timm_files import usual_heads

_KERNEL, _TOKEN, _PROJECTION = f"{TOWER}.conv1.weight", f"{TOWER}.class_embedding", f"{TOWER}.proj"
_TEXT = (
    "transformer.*", "token_embedding.*", "positional_embedding", "ln_final.*", "text_projection", "text_projection.*", "text.*",
    "attn_mask",
)  # fmt: skip
_OPENAI = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's files have among their tensors."""
_OTHER_POOLING = ("attentional_pool", "global_average_pool", "final_ln_after_pool")


def _describe(shapes: Mapping[str, Shape], *, settings: Settings, where: str) -> Described:
    told = settings.get("open_clip_config.json", {})
    config, images = told.get("model_cfg") or {}, told.get("preprocess_cfg") or {}
    vision = config.get("vision_cfg") or {}
    other = next((key for key in _OTHER_POOLING if vision.get(key)), None)
    if other is not None or vision.get("pool_type", "tok") != "tok":
        raise CheckpointError(f"{where}: open_clip_config.json has {other or 'pool_type'}, and a tower is read that gives its class token")
    width, channels, patch_size, _ = shape_of(shapes, _KERNEL, num_dims=4, where=where)
    num_positions = shape_of(shapes, f"{TOWER}.positional_embedding", num_dims=2, where=where)[0]
    assumed = ["norms add 1e-5, as in open_clip"]
    model: dict[str, Any] = {
        "kind": "vit",
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": image_side(num_positions - 1, patch_size=patch_size, where=where),
        "width": width,
        "depth": count_blocks(shapes, f"{TOWER}.transformer.resblocks.{{i}}.ln_1.weight"),
        "mlp_width": shape_of(shapes, f"{TOWER}.transformer.resblocks.0.mlp.c_fc.weight", num_dims=2, where=where)[0],
        "gelu": _gelu(shapes, config, assumed=assumed),
        "layer_norm_eps": 1e-5,
        "patch_bias": False,
        "embedding_norm": True,
        "pooling": "cls",
        **clip_statistics(channels, mean=images.get("mean"), std=images.get("std")),
    }
    heads = width // vision.get("head_width", 64) if vision else usual_heads(width)
    if heads:
        model["num_heads"] = heads
    if heads and not vision:
        assumed.append(f"{heads} attention heads, as in every named size of width {width}; the file does not say")
    if not images.get("mean"):
        assumed.append("images are normalised with CLIP's mean and deviation")
    if _PROJECTION in shapes:
        assumed.append("the head is the projection to image embeddings, with a bias of zeros: its outputs are those embeddings")
    return Described(
        layout="open_clip",
        model=model,
        head={"num_classes": shape_of(shapes, _PROJECTION, num_dims=2, where=where)[1]} if _PROJECTION in shapes else None,
        positions="open_clip",
        assumed=tuple(assumed),
        set_aside=(*_TEXT, *_OPENAI),
    )


def _gelu(shapes: Mapping[str, Shape], config: Mapping[str, Any], *, assumed: list[str]) -> str:
    if config:
        return "quick" if config.get("quick_gelu") else "exact"
    if all(name in shapes for name in _OPENAI):
        return "quick"
    assumed.append("GELU is exact; for OpenAI's weights and models of open_clip whose names end in -quickgelu give model.gelu=quick")
    return "exact"


OPEN_CLIP = Family(claims=lambda shapes: _KERNEL in shapes and _TOKEN in shapes, entries=plain_entries, describe=_describe)
