"""Which layouts can hold a model: the formats that a user asks for, the layouts of each, and the settings that those leave room for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vitscale.config import CheckpointError, Config
from vitscale.models import HieraConfig, ModelConfig, SwinConfig, ViTConfig
from vitscale.nn.relative_bias import RelativeBiasConfig
from vitscale.nn.resnet_stem import ResNetStemConfig
from vitscale.nn.rope import Dinov3RopeConfig, MixedRopeConfig
from vitscale.nn.stems import PatchStemConfig
from vitscale.weights.forms import Sizes
from vitscale.weights.rules import HeldConfig, Layout

Format = Literal["timm", "hf", "vit_jax", "big_vision", "onnx"]

LAYOUTS: dict[Format, tuple[Layout, ...]] = {
    "timm": ("timm", "timm_beit", "timm_eva", "timm_swin", "timm_hiera"),
    "hf": (
        "hf_vit", "hf_deit", "hf_dinov2", "hf_dinov2_with_registers", "hf_siglip", "hf_beit", "hf_dinov3_vit", "hf_swin", "hf_swinv2",
        "hf_clip",
    ),
    "vit_jax": ("vit_jax",),
    "big_vision": ("big_vision",),
    "onnx": ("onnx",),
}  # fmt: skip
"""The first that can hold a model is taken."""

_ANYWHERE: dict[str, frozenset[str]] = {
    "vit": frozenset(
        {
            "kind", "variant", "patch_size", "image_size", "num_channels", "num_heads", "width", "depth", "mlp_width", "gelu",
            "layer_norm_eps", "image_mean", "image_std", "resampling",
            "flexible_patches", "naflex", "stochastic_depth", "stochastic_depth_schedule", "dropout", "patch_dropout",
        }
    ),
    "swin": frozenset(
        {
            "kind", "variant", "patch_size", "image_size", "num_channels", "num_heads", "width", "depths", "mlp_ratio", "window_size",
            "layer_norm_eps", "image_mean", "image_std", "resampling", "stochastic_depth", "pretrained_window_sizes",
        }
    ),
    "hiera": frozenset(
        {
            "kind", "variant", "patch_size", "image_size", "num_channels", "num_heads", "width", "depths", "mlp_ratio", "window_stages",
            "shortcut", "window_positions", "position_grid", "layer_scale", "gelu", "layer_norm_eps", "image_mean", "image_std",
            "resampling", "stochastic_depth", "patch_dropout",
        }
    ),
}  # fmt: skip
"""By kind of model: settings that every layout carries, in tensors or beside them, and those that matter in training, or for other
inputs, only."""

_TIMM_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
"""timm's hybrids by the units of their stem's stages."""

_TABLES = ("learned", "sincos2d_mae", "sincos2d_big_vision")
_BOTH = (True, False)


class _Any(tuple[object, ...]):
    """Holds everything."""

    def __contains__(self, value: object) -> bool:
        return True


_ANY = _Any()


class _Hybrids(tuple[object, ...]):
    """Holds no stem, and ResNets."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, PatchStemConfig | ResNetStemConfig)


_STEMS = _Hybrids((PatchStemConfig(), ResNetStemConfig()))


@dataclass(frozen=True, kw_only=True)
class _Room:
    """The kind of model (None: any), and the values that settings may have, by name (None: any); those not named have their default.
    `problem` says what else is in the way."""

    settings: Mapping[str, tuple[Any, ...]] | None
    kind: str | None = "vit"
    has_pre_logits: bool = False
    problem: Callable[[Any, int], str | None] = field(default=lambda _model, _num_classes: None)


def choose_layout(model: ModelConfig, *, target: Format, num_classes: int, has_pre_logits: bool, where: str) -> tuple[Layout, HeldConfig]:
    """The layout of a format that holds `model` with a head of so many classes (0: none), and `model` itself.

    Raises `CheckpointError` naming the setting that makes it another function.
    """

    def problems(target: Format) -> dict[Layout, str | None]:
        same_kind = [layout for layout in LAYOUTS[target] if _ROOMS[layout].kind in (model.kind, None)]
        return {layout: _problem(model, layout=layout, num_classes=num_classes, has_pre_logits=has_pre_logits) for layout in same_kind}

    found = problems(target)
    chosen = next((layout for layout, problem in found.items() if problem is None), None)
    if chosen is not None:
        return chosen, model
    others = [other for other in LAYOUTS if None in problems(other).values()]
    shown = "; ".join(f"{layout}: {problem}" for layout, problem in found.items()) or f"it has no model of kind {model.kind}"
    raise CheckpointError(f"{where}: {target} cannot hold this model ({shown}). It can be exported to: {', '.join(others) or 'none'}")


def check_layout(model: ModelConfig, *, layout: Layout, num_classes: int, where: str) -> HeldConfig:
    """`model`, which was read off a file of that layout and changed by overrides. Raises `CheckpointError` unless it still holds it."""
    if _ROOMS[layout].kind != model.kind:
        raise CheckpointError(f"{where}: its tensors are those of kind {_ROOMS[layout].kind}, and model.kind makes it {model.kind}")
    problem = _problem(model, layout=layout, num_classes=num_classes, has_pre_logits=False)
    if problem is not None:
        raise CheckpointError(f"{where}: the layout {layout} cannot hold this model: {problem}")
    return model


def sizes_of(model: HeldConfig, *, their_row: bool, is_split_mlp: bool = False, is_split_qkv: bool = False) -> Sizes:
    """What the shapes of its tensors do not tell; what is split, a file tells."""
    if isinstance(model, HieraConfig):
        return Sizes(num_channels=model.num_channels, num_heads=1, has_two_tables=model.window_positions)
    if isinstance(model, SwinConfig):
        return Sizes(num_channels=model.num_channels, num_heads=1, stage_depths=tuple(stage.depth for stage in model.shape.stages))
    shape = model.shape
    return Sizes(
        num_channels=shape.kernel_channels,
        num_heads=shape.num_heads,
        # A fixed table is written with a row of zeros for the class token.
        own_row=bool(shape.num_prefix_positions) or model.positions != "learned",
        their_row=their_row,
        is_gated=shape.is_gated,
        is_pooled_norm=model.norm_place == "pooled",
        is_split_mlp=is_split_mlp,
        is_split_qkv=is_split_qkv,
        stem_units=model.stem.units if isinstance(model.stem, ResNetStemConfig) else None,
    )


def has_class_row(model: HeldConfig, *, layout: Layout) -> bool:
    """Whether the table of positions that is written has a row for the class token."""
    if not isinstance(model, ViTConfig):
        return False
    if layout == "big_vision":
        return False  # it adds positions before the class token comes in front, which so has none of its own
    if layout in ("timm", "timm_eva"):
        # timm gives register tokens rows where the class token has one, and ours have none.
        return model.prefix_positions and not model.num_registers
    return True


def writes_halves(model: HeldConfig, *, layout: Layout) -> bool:
    """Whether both halves of a gated MLP are written apart: timm's Eva has them so where hidden values are normalised."""
    return layout == "timm_eva" and isinstance(model, ViTConfig) and model.mlp_norm and model.shape.is_gated


def project_form(model: HeldConfig, *, layout: Layout) -> HeldConfig:
    """`model` as the layout's programs compute it: Google's know one form of GELU and one epsilon, and a file cannot say otherwise."""
    if layout in ("vit_jax", "big_vision"):
        return model.model_copy(update={"gelu": "tanh", "layer_norm_eps": 1e-6})
    return model


def differences(model: HeldConfig, *, layout: Layout) -> tuple[str, ...]:
    """What the layout's programs compute otherwise than `model`, and no file can tell them."""
    computed = project_form(model, layout=layout)
    changed = [name for name in ("gelu", "layer_norm_eps") if getattr(computed, name) != getattr(model, name)]
    return tuple(f"model.{name} is always {getattr(computed, name)}, and here it is {getattr(model, name)}" for name in changed)


def image_note(model: HeldConfig, *, layout: Layout) -> tuple[str, ...]:
    """How images are to be prepared for the layout's programs, where those do it otherwise; empty where they do the same."""
    if layout not in ("vit_jax", "big_vision") or {*model.image_mean, *model.image_std} == {0.5}:
        return ()
    shown = f"mean {list(model.image_mean)} and deviation {list(model.image_std)}"
    return (f"images are always scaled to [-1, 1], and here they are normalised with {shown}: prepare them so there",)


def _problem(model: HeldConfig, *, layout: Layout, num_classes: int, has_pre_logits: bool) -> str | None:
    room = _ROOMS[layout]
    known = type(model).model_fields if room.settings is not None else {}
    for name, setting in known.items():
        value = getattr(model, name)
        allowed = (room.settings or {}).get(name, (setting.get_default(call_default_factory=True),))
        if name not in _ANYWHERE[model.kind] and value not in allowed:
            return f"model.{name} is {_shown(value)}, and it knows {' and '.join(map(_shown, allowed))}"
    # Where GELU is not in the file, the program has one form.
    if model.gelu != "exact" and layout in ("timm_beit", "timm_eva", "timm_swin", "timm_hiera"):
        return f"model.gelu is {model.gelu}, and it knows the exact one"
    if room.settings is not None and model.image_size % model.shape.patch_size:
        return f"its images are whole patches, and model.image_size {model.image_size} is none of model.patch_size {model.shape.patch_size}"
    if has_pre_logits and not room.has_pre_logits:
        return "it has no layer before the head (objective.pre_logits)"
    return room.problem(model, num_classes)


def _shown(value: object) -> str:
    return str(value.model_dump()) if isinstance(value, Config) else repr(value)


def _timm_problem(model: ViTConfig, _: int) -> str | None:
    if model.distillation_token and (model.num_registers or not model.prefix_positions):
        return "its distilled ViT has no register tokens, and positions for its two tokens"
    if isinstance(model.stem, ResNetStemConfig):
        if timm_hybrid(model.stem) is None:
            return f"its hybrids have stems of {', '.join(map(str, _TIMM_HYBRIDS))} units and a width of 64 (model.stem)"
        if model.stem.epsilons != "timm":
            return "its hybrids add other numbers to variances; set model.stem.epsilons to timm and evaluate what that changes"
        if model.shape.is_gated or model.norm != "layer":
            return "its hybrids have layer norms and plain MLPs (model.norm, model.mlp)"
    if model.embedding_norm == model.patch_bias:
        return "its patches have a bias where tokens are not normalised before the blocks (model.patch_bias, model.embedding_norm)"
    if model.proj_bias != model.mlp_bias:
        return "its MLP has biases where its attention's projection has one (model.proj_bias, model.mlp_bias)"
    return None


def timm_hybrid(stem: ResNetStemConfig) -> str | None:
    """The name of timm's hybrid with that stem, whose other sizes are arguments; None where it has none."""
    return _TIMM_HYBRIDS.get(stem.units) if stem.width == 64 else None


def _vit_jax_problem(model: ViTConfig, num_classes: int) -> str | None:
    if isinstance(model.stem, ResNetStemConfig) and model.stem.epsilons != "google":
        return "it adds other numbers to variances; set model.stem.epsilons to google and evaluate what that changes"
    return _plain_tokens(model, num_classes)


def _plain_tokens(model: ViTConfig, _: int) -> str | None:
    """Google's programs have a class token where it is pooled, and only there."""
    return "model.class_token is set, without being pooled" if model.shape.class_token != (model.pooling == "cls") else None


def _dinov2_problem(model: ViTConfig, _: int) -> str | None:
    if model.layer_scale is None:
        return "it always has layer scale (model.layer_scale)"
    ratio = dinov2_ratio(model)
    if ratio is None:
        return f"model.mlp_width {model.shape.mlp_width} is none that a whole mlp_ratio gives at width {model.shape.width}"
    return None


def dinov2_ratio(model: ViTConfig) -> int | None:
    """The whole number from which transformers' DINOv2 computes the hidden width of the MLP; None where there is none."""
    shape = model.shape
    ratios = range(1, 64)
    if not shape.is_gated:
        return next((ratio for ratio in ratios if ratio * shape.width == shape.mlp_width), None)
    return next((ratio for ratio in ratios if (int(ratio * shape.width * 2 / 3) + 7) // 8 * 8 == shape.mlp_width), None)


def _siglip_problem(model: ViTConfig, num_classes: int) -> str | None:
    if model.shape.class_token:
        return "model.class_token is set, and it has none"
    if num_classes and model.pooling == "map":
        return "its classifier takes the mean of the tokens, not attention pooling"
    return None


def _bare_problem(_model: ViTConfig, num_classes: int) -> str | None:
    return "its classifier takes the mean of the patches before the last norm (objective)" if num_classes else None


def _eva_problem(model: ViTConfig, num_classes: int) -> str | None:
    if isinstance(model.rotary, MixedRopeConfig):
        return "model.rotary is mixed, whose frequencies it keeps in one tensor for all blocks"
    if isinstance(model.rotary, Dinov3RopeConfig) and model.rotary.normalise != "separate":
        return f"model.rotary.normalise is {model.rotary.normalise}, and it knows separate"
    return _timm_problem(model, num_classes)


def _dinov3_problem(model: ViTConfig, num_classes: int) -> str | None:
    if num_classes:
        return "it has no classifier (objective)"
    if not isinstance(model.rotary, Dinov3RopeConfig) or model.rotary.normalise != "separate":
        return "it has DINOv3's rotary positions, each side from -1 to 1"
    return "it always has layer scale (model.layer_scale)" if model.layer_scale is None else None


def _pooled_as_beit(model: ViTConfig, _: int) -> str | None:
    """BEiT's code normalises the mean, and the tokens where the class token is taken."""
    if (model.pooling == "mean") != (model.norm_place == "pooled"):
        return f"model.norm_place is {model.norm_place} with model.pooling {model.pooling}"
    return None if model.shape.class_token else "it always has a class token (model.class_token)"


def _graph_problem(model: HeldConfig, _: int) -> str | None:
    """A graph computes the same steps for every image, and gives one vector of each."""
    if not isinstance(model, ViTConfig):
        return None
    if model.halting is not None:
        return "model.halting lets tokens leave when their values say so, and in a graph all images take the same steps"
    if model.token_merging is not None:
        return "model.token_merging sorts tokens in a stable way, which torch's exporter cannot express (up to torch 2.13)"
    return "model.pooling none makes nothing that could be an output" if model.pooling == "none" else None


def _padded_as(padding: str) -> Callable[[SwinConfig, int], str | None]:
    """Where windows divide every map, it does not matter how they are filled up."""

    def problem(model: SwinConfig, _: int) -> str | None:
        if model.window_padding != padding and any(stage.grid % stage.window for stage in model.shape.stages):
            return f"model.window_padding is {model.window_padding}, and it knows {padding}"
        return None

    return problem


_TIMM = {
    "stem": _STEMS,
    "positions": (*_TABLES, "none"), "pooling": ("cls", "mean", "map"), "norm_place": ("tokens", "pooled"), "class_token": (None, *_BOTH),
    "prefix_positions": _BOTH, "distillation_token": _BOTH, "num_registers": _ANY, "norm": ("layer", "rms"), "qkv_bias": ("all", "none"),
    "proj_bias": _BOTH, "mlp_bias": _BOTH, "qk_norm": _BOTH, "layer_scale": _ANY, "mlp": ("gelu", "swiglu", "swiglu64"), "mlp_norm": _BOTH,
    "embedding_norm": _BOTH, "patch_bias": _BOTH,
}  # fmt: skip
_TIMM_EVA = {
    "positions": (*_TABLES, "none"), "pooling": ("cls", "mean"), "norm_place": ("tokens", "pooled"), "class_token": (None, *_BOTH),
    "prefix_positions": _BOTH, "num_registers": _ANY, "qkv_bias": ("no_key", "none"), "layer_scale": _ANY,
    "mlp": ("gelu", "swiglu", "swiglu64"), "mlp_norm": _BOTH, "rotary": _ANY,
}  # fmt: skip
_BEIT = {
    "positions": (*_TABLES, "none"), "pooling": ("cls", "mean"), "norm_place": ("tokens", "pooled"), "class_token": (None, True),
    "qkv_bias": ("no_key", "none"), "layer_scale": _ANY,
    "position_bias": (None, RelativeBiasConfig(), RelativeBiasConfig(shared=True)),
}  # fmt: skip
_HF = {"positions": _TABLES, "class_token": (None, True), "prefix_positions": _BOTH, "qkv_bias": ("all", "none")}
_DINOV2 = {**_HF, "layer_scale": _ANY, "mlp": ("gelu", "swiglu", "swiglu64")}
_DINOV3 = {
    "positions": ("none",), "class_token": (None, True), "num_registers": _ANY, "qkv_bias": ("no_key", "none"), "proj_bias": _BOTH,
    "mlp_bias": _BOTH, "layer_scale": _ANY, "mlp": ("gelu", "swiglu", "swiglu64"), "rotary": _ANY,
}  # fmt: skip
_CLIP = {"class_token": (None, True), "embedding_norm": (True,), "patch_bias": (False,)}
_GOOGLE = {"positions": _TABLES, "class_token": (None, *_BOTH), "prefix_positions": _BOTH}
_SWIN = {"window_padding": ("before_shift", "after_shift")}

_ROOMS: dict[Layout, _Room] = {
    "timm": _Room(settings=_TIMM, problem=_timm_problem),
    "timm_beit": _Room(settings=_BEIT, problem=_pooled_as_beit),
    "timm_eva": _Room(settings=_TIMM_EVA, problem=_eva_problem),
    "timm_swin": _Room(kind="swin", settings={**_SWIN, "version": (1, 2)}, problem=_padded_as("after_shift")),
    "timm_hiera": _Room(kind="hiera", settings={}),
    "hf_vit": _Room(settings=_HF),
    "hf_deit": _Room(settings={**_HF, "distillation_token": (True,), "prefix_positions": (True,)}),
    "hf_dinov2": _Room(settings=_DINOV2, problem=_dinov2_problem),
    "hf_dinov2_with_registers": _Room(settings={**_DINOV2, "num_registers": _ANY}, problem=_dinov2_problem),
    "hf_siglip": _Room(settings={"positions": _TABLES, "pooling": ("mean", "map"), "class_token": (None, False)}, problem=_siglip_problem),
    "hf_beit": _Room(settings={**_BEIT, "prefix_positions": _BOTH}, problem=_pooled_as_beit),
    "hf_dinov3_vit": _Room(settings=_DINOV3, problem=_dinov3_problem),
    "hf_swin": _Room(kind="swin", settings=_SWIN, problem=_padded_as("before_shift")),
    "hf_swinv2": _Room(kind="swin", settings={**_SWIN, "version": (2,)}, problem=_padded_as("before_shift")),
    "hf_clip": _Room(settings=_CLIP, problem=_bare_problem),
    "open_clip": _Room(settings=_CLIP),
    "vit_jax": _Room(settings={**_GOOGLE, "stem": _STEMS, "pooling": ("cls", "mean")}, has_pre_logits=True, problem=_vit_jax_problem),
    "big_vision": _Room(settings={**_GOOGLE, "pooling": ("cls", "mean", "map")}, has_pre_logits=True, problem=_plain_tokens),
    "onnx": _Room(kind=None, settings=None, has_pre_logits=True, problem=_graph_problem),
}
