"""The table of all layouts: how other projects, and the kinds of models in them, call and shape what we have."""

from collections.abc import Callable
from typing import Literal

from vitscale.models import HieraConfig, SwinConfig, ViTConfig
from vitscale.weights.clip_rules import hf_clip, open_clip
from vitscale.weights.forms import Sizes
from vitscale.weights.hiera_rules import timm_hiera
from vitscale.weights.kin_rules import hf_beit, hf_dinov3, timm_beit, timm_eva
from vitscale.weights.rule import Rule
from vitscale.weights.swin_rules import hf_swin, hf_swinv2, timm_swin
from vitscale.weights.vit_rules import big_vision, hf_dinov2, hf_siglip, hf_vit, timm, vit_jax

Layout = Literal[
    "timm", "timm_beit", "timm_eva", "timm_swin", "timm_hiera",
    "hf_vit", "hf_deit", "hf_dinov2", "hf_dinov2_with_registers", "hf_siglip", "hf_beit", "hf_dinov3_vit", "hf_swin", "hf_swinv2",
    "hf_clip", "open_clip", "vit_jax", "big_vision", "onnx",
]  # fmt: skip
"""Names and shapes of tensors, which have rules below; onnx is a graph instead, made of the model itself."""

HeldConfig = ViTConfig | SwinConfig | HieraConfig
"""The kinds of models that a layout may hold."""


def rules_of(layout: Layout, *, sizes: Sizes) -> list[Rule]:
    """The rules of a layout for models of such sizes. Those for what a model does not have are of no effect."""
    return _RULES[layout](sizes)


_RULES: dict[Layout, Callable[[Sizes], list[Rule]]] = {
    "timm": timm,
    "timm_beit": timm_beit,
    "timm_eva": timm_eva,
    "timm_swin": timm_swin,
    "timm_hiera": timm_hiera,
    "hf_vit": lambda _: hf_vit("vit", "classifier"),
    "hf_deit": lambda _: hf_vit("deit", "cls_classifier", "distillation_classifier"),
    "hf_dinov2": lambda sizes: hf_dinov2("dinov2", sizes),
    "hf_dinov2_with_registers": lambda sizes: hf_dinov2("dinov2_with_registers", sizes),
    "hf_siglip": hf_siglip,
    "hf_beit": hf_beit,
    "hf_dinov3_vit": hf_dinov3,
    "hf_swin": hf_swin,
    "hf_swinv2": hf_swinv2,
    "hf_clip": hf_clip,
    "open_clip": open_clip,
    "vit_jax": vit_jax,
    "big_vision": big_vision,
}
