"""The weights of a plain ViT under our names and under those of timm, Hugging Face, vit_jax and big_vision, and in their shapes.

A layout is a table of rules. Hugging Face names are those on disk (transformers v4), which v5 reads and writes too. Names and
layouts of the two Google formats: google-research/vision_transformer (vit_jax/models_vit.py) and google-research/big_vision
(models/vit.py).
"""

# D width, C channels, P patch side, H heads, K head width, N tokens

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitscale.config import CheckpointError

Layout = Literal["timm", "hf", "vit_jax", "big_vision"]
ClassPosition = Literal["own", "none"]
"""own: the table of positions begins with a row for the class token. none: it has rows for patches only, and the class token
holds what its own position would add."""

Shape = tuple[int, ...]
CLASS_TOKEN, POSITIONS = "backbone.cls_token", "backbone.pos_embed"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the shapes of our tensors do not tell and theirs depend on."""

    num_channels: int
    num_heads: int
    class_position: ClassPosition = "own"


Convert = Callable[[Sequence[Tensor], Sizes], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How values go from our tensors to theirs and back. `in_order`: theirs, one after the other, hold the elements of our one
    tensor as they lie in memory, so that nothing needs to be held whole to convert it."""

    to_theirs: Convert
    to_ours: Convert
    in_order: bool = False


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How tensors of ours, `{i}` being the block's number, are called elsewhere and in which form."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    form: Form


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A rule for one block: names and shapes on both sides."""

    ours: dict[str, Shape]
    theirs: dict[str, Shape]
    form: Form
    sizes: Sizes

    @property
    def num_elements(self) -> int:
        """Elements of our tensors."""
        return sum(math.prod(shape) for shape in self.ours.values())

    def to_theirs(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Their tensors by name, made of ours in the order of `ours`. Views where that is possible."""
        return dict(zip(self.theirs, self.form.to_theirs(values, self.sizes), strict=True))

    def to_ours(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Our tensors by name, made of theirs in the order of `theirs`. Views where that is possible."""
        return dict(zip(self.ours, self.form.to_ours(values, self.sizes), strict=True))


def plan_conversions(shapes: Mapping[str, Shape], *, layout: Layout, sizes: Sizes) -> list[Conversion]:
    """How each of our tensors, given by name and whole shape, is stored in `layout`, in the order of ours.

    Raises `CheckpointError` naming what the layout has no place for.
    """
    rules = _rules(layout, class_position=sizes.class_position)
    done: set[str] = set()
    result, unknown = [], []
    for name in shapes:
        pattern, block = split_block(name)
        rule = next((rule for rule in rules if pattern in rule.ours and all(_named(ours, block) in shapes for ours in rule.ours)), None)
        if rule is None:
            unknown.append(name)
        elif name not in done:
            ours = {_named(name, block): shapes[_named(name, block)] for name in rule.ours}
            done.update(ours)
            # On the meta device a form tells the shapes and computes nothing.
            converted = rule.form.to_theirs([torch.empty(shape, device="meta") for shape in ours.values()], sizes)
            theirs = {_named(name, block): tuple(value.shape) for name, value in zip(rule.theirs, converted, strict=True)}
            result.append(Conversion(ours=ours, theirs=theirs, form=rule.form, sizes=sizes))
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise CheckpointError(
            f"the layout {layout} has no place for {shown}; export to a layout that has ({', '.join(layouts_for(unknown)) or 'none does'})"
        )
    return result


def layouts_for(names: Sequence[str]) -> list[Layout]:
    """The layouts that have a place for every one of our names."""
    patterns = {split_block(name)[0] for name in names}
    return [layout for layout in _RULES if patterns <= {ours for rule in _RULES[layout] for ours in rule.ours}]


def split_block(name: str) -> tuple[str, str]:
    """The name with its block's number as `{i}`, and the number; an empty one for what is in no block."""
    match = _BLOCK_NUMBER.search(name)
    return (name, "") if match is None else (f"{name[: match.start()]}{{i}}{name[match.end() :]}", match.group())


def _named(pattern: str, block: str) -> str:
    return pattern.replace("{i}", block)


def _same(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return list(values)


def _to_oihw(values: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    weight = values[0]
    side = math.isqrt(weight.shape[1] // sizes.num_channels)
    return [weight.reshape(weight.shape[0], sizes.num_channels, side, side)]


def _from_oihw(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].flatten(1)]


def _to_hwio(values: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    return [_to_oihw(values, sizes)[0].permute(2, 3, 1, 0)]


def _from_hwio(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].permute(3, 2, 0, 1).flatten(1)]


def _transpose(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].T]


def _to_three(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return list(values[0].chunk(3))


def _from_three(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [torch.cat(list(values))]


def _to_head_kernels(values: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    """(3D, D), rows of query, key and value, to three (D, H, K)."""
    return [part_DD.T.unflatten(1, (sizes.num_heads, -1)) for part_DD in values[0].chunk(3)]


def _from_head_kernels(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [torch.cat([kernel_DHK.flatten(1).T for kernel_DHK in values])]


def _to_head_biases(values: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    return [part_D.unflatten(0, (sizes.num_heads, -1)) for part_D in values[0].chunk(3)]


def _from_head_biases(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [torch.cat([bias_HK.flatten() for bias_HK in values])]


def _to_out_kernel(values: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    """(D, D) to (H, K, D)."""
    return [values[0].T.unflatten(0, (sizes.num_heads, -1))]


def _from_out_kernel(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    return [values[0].flatten(0, 1).T]


def _fold_class_row(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    """The class token with its position added, and the positions of the patches."""
    token_11D, table_1ND = values
    return [token_11D + table_1ND[:, :1], table_1ND[:, 1:]]


def _add_class_row(values: Sequence[Tensor], _: Sizes) -> list[Tensor]:
    token_11D, table_1ND = values
    return [token_11D, torch.cat([torch.zeros_like(token_11D), table_1ND], dim=1)]


SAME = Form(to_theirs=_same, to_ours=_same, in_order=True)
OIHW = Form(to_theirs=_to_oihw, to_ours=_from_oihw, in_order=True)
HWIO = Form(to_theirs=_to_hwio, to_ours=_from_hwio)
TRANSPOSED = Form(to_theirs=_transpose, to_ours=_transpose)
STACKED = Form(to_theirs=_to_three, to_ours=_from_three, in_order=True)
HEAD_KERNELS = Form(to_theirs=_to_head_kernels, to_ours=_from_head_kernels)
HEAD_BIASES = Form(to_theirs=_to_head_biases, to_ours=_from_head_biases, in_order=True)
OUT_KERNEL = Form(to_theirs=_to_out_kernel, to_ours=_from_out_kernel)
FOLDED_CLASS_ROW = Form(to_theirs=_fold_class_row, to_ours=_add_class_row)


def _both(ours: str, *theirs: str, form: Form = SAME, bias_form: Form = SAME, ends: tuple[str, str] = (".weight", ".bias")) -> list[Rule]:
    """The rules of a module's weight and bias; `ends` is what they add to the names of their modules."""
    return [
        Rule(ours=(f"{ours}.weight",), theirs=tuple(f"{name}{ends[0]}" for name in theirs), form=form),
        Rule(ours=(f"{ours}.bias",), theirs=tuple(f"{name}{ends[1]}" for name in theirs), form=bias_form),
    ]


def _google(attention: str, norm2: str, mlp: str) -> list[Rule]:
    """The rules of a Google file; flax numbers the modules of a block differently in the two projects."""
    dense, norm = ("/kernel", "/bias"), ("/scale", "/bias")
    block, ours = "Transformer/encoderblock_{i}", "backbone.blocks.{i}"
    heads = [f"{block}/{attention}/{part}" for part in ("query", "key", "value")]
    return [
        *_both("backbone.patch_embed", "embedding", form=HWIO, ends=dense),
        *_both(f"{ours}.norm1", f"{block}/LayerNorm_0", ends=norm),
        *_both(f"{ours}.attn.qkv", *heads, form=HEAD_KERNELS, bias_form=HEAD_BIASES, ends=dense),
        *_both(f"{ours}.attn.proj", f"{block}/{attention}/out", form=OUT_KERNEL, ends=dense),
        *_both(f"{ours}.norm2", f"{block}/{norm2}", ends=norm),
        *_both(f"{ours}.mlp.fc1", f"{block}/{mlp}/Dense_0", form=TRANSPOSED, ends=dense),
        *_both(f"{ours}.mlp.fc2", f"{block}/{mlp}/Dense_1", form=TRANSPOSED, ends=dense),
        *_both("backbone.norm", "Transformer/encoder_norm", ends=norm),
        *_both("head.pre_logits", "pre_logits", form=TRANSPOSED, ends=dense),
        *_both("head.fc", "head", form=TRANSPOSED, ends=dense),
    ]


_TIMM_BLOCK_MODULES = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_HF_BLOCK, _HF_ATTENTION = "vit.encoder.layer.{i}", "vit.encoder.layer.{i}.attention"
_HF_QKV = tuple(f"{_HF_ATTENTION}.attention.{part}" for part in ("query", "key", "value"))

_RULES: dict[Layout, list[Rule]] = {
    "timm": [
        *_both("backbone.patch_embed", "patch_embed.proj", form=OIHW),
        *(rule for module in _TIMM_BLOCK_MODULES for rule in _both(f"backbone.blocks.{{i}}.{module}", f"blocks.{{i}}.{module}")),
        *_both("backbone.norm", "norm"),
        *_both("head.fc", "head"),
    ],
    "hf": [
        *_both("backbone.patch_embed", "vit.embeddings.patch_embeddings.projection", form=OIHW),
        *_both("backbone.blocks.{i}.norm1", f"{_HF_BLOCK}.layernorm_before"),
        *_both("backbone.blocks.{i}.attn.qkv", *_HF_QKV, form=STACKED, bias_form=STACKED),
        *_both("backbone.blocks.{i}.attn.proj", f"{_HF_ATTENTION}.output.dense"),
        *_both("backbone.blocks.{i}.norm2", f"{_HF_BLOCK}.layernorm_after"),
        *_both("backbone.blocks.{i}.mlp.fc1", f"{_HF_BLOCK}.intermediate.dense"),
        *_both("backbone.blocks.{i}.mlp.fc2", f"{_HF_BLOCK}.output.dense"),
        *_both("backbone.norm", "vit.layernorm"),
        *_both("head.fc", "classifier"),
    ],
    "vit_jax": _google("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
    "big_vision": _google("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"),
}

_EMBEDDINGS: dict[Layout, tuple[str, str]] = {
    "timm": ("cls_token", "pos_embed"),
    "hf": ("vit.embeddings.cls_token", "vit.embeddings.position_embeddings"),
    "vit_jax": ("cls", "Transformer/posembed_input/pos_embedding"),
    "big_vision": ("cls", "pos_embedding"),
}
"""What the class token and the table of positions are called."""

_BLOCK_NUMBER = re.compile(r"(?<=[._])\d+(?=[./])")


def _rules(layout: Layout, *, class_position: ClassPosition) -> list[Rule]:
    token, table = _EMBEDDINGS[layout]
    folded = [Rule(ours=(CLASS_TOKEN, POSITIONS), theirs=(token, table), form=FOLDED_CLASS_ROW)]
    apart = [Rule(ours=(CLASS_TOKEN,), theirs=(token,), form=SAME), Rule(ours=(POSITIONS,), theirs=(table,), form=SAME)]
    return [*(folded if class_position == "none" else []), *apart, *_RULES[layout]]
