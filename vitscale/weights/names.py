"""The weights of a plain ViT with a linear head under our names, timm's and Hugging Face's: renamed, stacked or reshaped.

Hugging Face names are those on disk (transformers v4), which v5 reads and writes too.
"""

# D width, C channels, P patch side

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitscale.config import CheckpointError

Layout = Literal["timm", "hf"]
Form = Literal["same", "kernel", "stacked"]
"""same: one tensor in both. kernel: ours is flat (D, C*P*P), theirs OIHW (D, C, P, P). stacked: ours has the rows of their
query, key and value."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one tensor of ours, `{i}` being the block's number, is called elsewhere and in which form."""

    ours: str
    theirs: tuple[str, ...]
    form: Form = "same"


def to_foreign(weights: Mapping[str, Tensor], *, layout: Layout, num_channels: int) -> dict[str, Tensor]:
    """Our weights under the names and in the shapes of `layout`. Raises `CheckpointError` for what it has no place for."""
    result: dict[str, Tensor] = {}
    unknown = []
    for name, value in weights.items():
        rule, block = _rule_of(name, layout=layout)
        if rule is None:
            unknown.append(name)
            continue
        names = [their_name.format(i=block) for their_name in rule.theirs]
        result.update(zip(names, _EXPORT[rule.form](value, num_channels), strict=True))
    _refuse_unknown(unknown, layout=layout, direction="to")
    return result


def from_foreign(weights: Mapping[str, Tensor], *, layout: Layout) -> dict[str, Tensor]:
    """Weights in `layout` under our names and in our shapes.

    Raises `CheckpointError` for tensors that a plain ViT with a linear head does not have, and for a query, key or value
    that stands alone.
    """
    result: dict[str, Tensor] = {}
    used: set[str] = set()
    for name in weights:
        rule, block = _rule_by_foreign_name(name, layout=layout)
        if rule is None or name in used:
            continue
        names = [their_name.format(i=block) for their_name in rule.theirs]
        if all(their_name in weights for their_name in names):
            used.update(names)
            result[rule.ours.format(i=block)] = _IMPORT[rule.form]([weights[their_name] for their_name in names])
    _refuse_unknown([name for name in weights if name not in used], layout=layout, direction="from")
    return result


def _refuse_unknown(names: list[str], *, layout: Layout, direction: Literal["to", "from"]) -> None:
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise CheckpointError(
            f"cannot convert {direction} {layout} names: {shown} has no counterpart in a plain ViT with a linear head;"
            " remove what is not part of one (pooler, pre_logits, mask token)"
        )


def _both(ours: str, *theirs: str, form: Form = "same") -> list[Rule]:
    """The rules of a module's weight and bias."""
    return [
        Rule(ours=f"{ours}.weight", theirs=tuple(f"{name}.weight" for name in theirs), form=form),
        Rule(ours=f"{ours}.bias", theirs=tuple(f"{name}.bias" for name in theirs), form="same" if form == "kernel" else form),
    ]


_TIMM_BLOCK_MODULES = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_HF_BLOCK, _HF_ATTENTION = "vit.encoder.layer.{i}", "vit.encoder.layer.{i}.attention"

_RULES: dict[Layout, list[Rule]] = {
    "timm": [
        Rule(ours="backbone.cls_token", theirs=("cls_token",)),
        Rule(ours="backbone.pos_embed", theirs=("pos_embed",)),
        *_both("backbone.patch_embed", "patch_embed.proj", form="kernel"),
        *(rule for module in _TIMM_BLOCK_MODULES for rule in _both(f"backbone.blocks.{{i}}.{module}", f"blocks.{{i}}.{module}")),
        *_both("backbone.norm", "norm"),
        *_both("head.fc", "head"),
    ],
    "hf": [
        Rule(ours="backbone.cls_token", theirs=("vit.embeddings.cls_token",)),
        Rule(ours="backbone.pos_embed", theirs=("vit.embeddings.position_embeddings",)),
        *_both("backbone.patch_embed", "vit.embeddings.patch_embeddings.projection", form="kernel"),
        *_both("backbone.blocks.{i}.norm1", f"{_HF_BLOCK}.layernorm_before"),
        *_both(
            "backbone.blocks.{i}.attn.qkv",
            *(f"{_HF_ATTENTION}.attention.{part}" for part in ("query", "key", "value")),
            form="stacked",
        ),
        *_both("backbone.blocks.{i}.attn.proj", f"{_HF_ATTENTION}.output.dense"),
        *_both("backbone.blocks.{i}.norm2", f"{_HF_BLOCK}.layernorm_after"),
        *_both("backbone.blocks.{i}.mlp.fc1", f"{_HF_BLOCK}.intermediate.dense"),
        *_both("backbone.blocks.{i}.mlp.fc2", f"{_HF_BLOCK}.output.dense"),
        *_both("backbone.norm", "vit.layernorm"),
        *_both("head.fc", "classifier"),
    ],
}
_BY_OUR_NAME = {layout: {rule.ours: rule for rule in rules} for layout, rules in _RULES.items()}
_BY_THEIR_NAME = {layout: {name: rule for rule in rules for name in rule.theirs} for layout, rules in _RULES.items()}
_BLOCK_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def _rule_of(name: str, *, layout: Layout) -> tuple[Rule | None, str]:
    pattern, block = _split_block(name)
    return _BY_OUR_NAME[layout].get(pattern), block


def _rule_by_foreign_name(name: str, *, layout: Layout) -> tuple[Rule | None, str]:
    pattern, block = _split_block(name)
    return _BY_THEIR_NAME[layout].get(pattern), block


def _split_block(name: str) -> tuple[str, str]:
    """The name with its block's number as `{i}`, and the number."""
    match = _BLOCK_NUMBER.search(name)
    return (name, "") if match is None else (f"{name[: match.start()]}{{i}}{name[match.end() :]}", match.group())


def _to_oihw(weight: Tensor, num_channels: int) -> list[Tensor]:
    side = math.isqrt(weight.shape[1] // num_channels)
    return [weight.reshape(weight.shape[0], num_channels, side, side)]


_EXPORT: dict[Form, Callable[[Tensor, int], list[Tensor]]] = {
    "same": lambda value, _: [value],
    "kernel": _to_oihw,
    "stacked": lambda value, _: list(value.chunk(3)),
}
_IMPORT: dict[Form, Callable[[list[Tensor]], Tensor]] = {
    "same": lambda values: values[0],
    "kernel": lambda values: values[0].flatten(1),
    "stacked": lambda values: torch.cat(values),
}
