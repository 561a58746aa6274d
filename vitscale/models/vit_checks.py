"""Which settings of a vision transformer are wrong, without effect or at odds with others, and what a published model fixes of them."""

from typing import Any

from pydantic import ValidationInfo, field_validator, model_validator

from vitscale.models.exclusions import FOR_TOKENS, refuse_beside_channels, refuse_excluded
from vitscale.models.naflex import NaFlexConfig, naflex_problem
from vitscale.models.settings import as_yaml, fixed_part, one_per_channel, size_or_name, tiling_side, with_proposals
from vitscale.models.variants import parse_variant
from vitscale.models.vit_settings import ViTSettings
from vitscale.nn.halting import HaltingConfig
from vitscale.nn.mlp import Gelu
from vitscale.nn.pooling import NormPlace
from vitscale.nn.position_bias import PositionBiasConfig
from vitscale.nn.relative_bias import RelativeBiasConfig
from vitscale.nn.resample import POSITION_MODES
from vitscale.nn.rope import RotaryConfig
from vitscale.nn.stems import StemConfig


class CheckedViTSettings(ViTSettings):
    """Settings that are filled in from the variant and go with each other."""

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_variant(cls, values: Any) -> Any:
        """Fill in what a published model fixes; what is given as well is compared once it has its type."""
        if not isinstance(values, dict):
            return values
        name = values.get("variant")
        try:
            settings = parse_variant(name).settings if isinstance(name, str) else {}
        except ValueError:
            settings = {}  # told where the name stands
        return with_proposals(values, proposals=settings)

    @field_validator("*")
    @classmethod
    def _is_the_variants(cls, value: Any, info: ValidationInfo) -> Any:
        name, setting = info.data.get("variant"), str(info.field_name)
        if name is None or setting == "variant" or setting in parse_variant(name).free:
            return value
        fixed = parse_variant(name).settings.get(setting, value)
        if fixed_part(value) != fixed_part(fixed):
            raise ValueError(
                f"{as_yaml(value)} contradicts model.variant {name}, which has {as_yaml(fixed)}; leave it out, or name a plain size"
                f" such as B/16 and give every setting"
            )
        return value

    @field_validator("variant")
    @classmethod
    def _variant_is_known(cls, value: str | None) -> str | None:
        if value is not None:
            parse_variant(value)
        return value

    @field_validator("patch_size", "num_heads", "width", "depth")
    @classmethod
    def _size_is_given(cls, value: int | None, info: ValidationInfo) -> int | None:
        return size_or_name(value, info)

    @field_validator("flexible_patches")
    @classmethod
    def _patches_differ(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) == 1 or len(set(value)) < len(value):
            raise ValueError(f"one of several sizes is drawn for each step: give two or more, each once, not {list(value)}")
        return value

    @field_validator("image_size")
    @classmethod
    def _patches_tile_the_image(cls, value: int, info: ValidationInfo) -> int:
        patch, flexible = _resolved("patch_size", info), info.data.get("flexible_patches", ())
        unfit = [size for size in flexible if value % size]
        if unfit:
            raise ValueError(f"{value} is not a multiple of every one of model.flexible_patches, such as {unfit[0]}")
        if flexible and patch is not None and value < patch:
            raise ValueError(f"{value} is smaller than model.patch_size {patch}, the side at which the kernel is kept")
        return value if flexible else tiling_side(value, patch=patch)

    @field_validator("stem")
    @classmethod
    def _stem_strides_divide_the_patch(cls, value: StemConfig, info: ValidationInfo) -> StemConfig:
        patch = _resolved("patch_size", info)
        sides = {"patch_size": () if patch is None else (patch,), "flexible_patches": info.data.get("flexible_patches", ())}
        unfit = [(key, side) for key, several in sides.items() for side in several if side % value.stride]
        if unfit:
            key, side = unfit[0]
            raise ValueError(
                f"{value.kind} makes the image {value.stride} times smaller, and model.{key} {side} is not a multiple of that;"
                f" use for example {-(-side // value.stride) * value.stride}, or a stem of smaller stride"
            )
        return value

    @field_validator("width")
    @classmethod
    def _heads_divide_the_width(cls, value: int | None, info: ValidationInfo) -> int | None:
        width, heads = value or _resolved("width", info), _resolved("num_heads", info)
        if width is not None and heads is not None and width % heads:
            raise ValueError(f"{width} is not a multiple of model.num_heads {heads}")
        return value

    @field_validator("gelu")
    @classmethod
    def _gelu_is_used(cls, value: Gelu, info: ValidationInfo) -> Gelu:
        mlp = info.data.get("mlp", "gelu")
        if value != "exact" and mlp != "gelu":
            raise ValueError(f"has no effect on model.mlp {mlp}, which is gated by SiLU; leave it out")
        return value

    @field_validator("mlp_width")
    @classmethod
    def _width_is_aligned(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("mlp") == "swiglu64" and value % 64:
            raise ValueError(f"{value} is not a multiple of 64, which model.mlp swiglu64 has; use {-(-value // 64) * 64}, or swiglu")
        return value

    @field_validator("positions")
    @classmethod
    def _width_fits_the_table(cls, value: str, info: ValidationInfo) -> str:
        width = _resolved("width", info)
        if value.startswith("sincos2d") and width is not None and (width % 4 or width < 8):
            raise ValueError(f"{value} needs a model.width of at least 8 that is a multiple of 4, not {width}")
        return value

    @field_validator("norm_place")
    @classmethod
    def _something_is_pooled(cls, value: NormPlace, info: ValidationInfo) -> NormPlace:
        if value == "pooled" and info.data.get("pooling") == "none":
            raise ValueError("model.pooling none makes nothing that could be normalised; leave it out")
        if value == "pooled" and info.data.get("pooling") == "cls":
            raise ValueError("has no effect on model.pooling cls: the norm of the class token is the same before and after; leave it out")
        return value

    @field_validator("class_token")
    @classmethod
    def _cls_is_pooled_from_a_token(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value is False and info.data.get("pooling") == "cls":
            raise ValueError("model.pooling cls takes the class token; leave it out, or set model.pooling to mean")
        return value

    @field_validator("distillation_token")
    @classmethod
    def _distilled_beside_a_class_token(cls, value: bool, info: ValidationInfo) -> bool:
        pooling = info.data.get("pooling", "cls")
        if value and pooling != "cls":
            raise ValueError(f"a distillation token stands beside a class token: it needs model.pooling cls, not {pooling}")
        return value

    @field_validator("prefix_positions")
    @classmethod
    def _some_prefix_token_lacks_a_row(cls, value: bool, info: ValidationInfo) -> bool:
        positions = info.data.get("positions", "learned")
        if not value and positions != "learned":
            raise ValueError(f"has an effect on learned positions only, not on model.positions {positions}; leave it out")
        has_token = info.data.get("pooling", "cls") == "cls" or info.data.get("class_token", True)
        if not value and not has_token:
            raise ValueError("has no effect without class or distillation token; leave it out")
        return value

    @field_validator("window")
    @classmethod
    def _windows_hold_patches_only(cls, value: int | None, info: ValidationInfo) -> int | None:
        prefix = [key for key in ("class_token", "distillation_token", "num_registers") if info.data.get(key)]
        if value is not None and (info.data.get("pooling") == "cls" or prefix):
            found = f"model.{prefix[0]}" if prefix else "model.pooling cls"
            raise ValueError(f"windows hold patches, and {found} adds a token that lies in none; pool by mean, map or none")
        return value

    @field_validator("global_blocks")
    @classmethod
    def _global_blocks_exist(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if value and info.data.get("window", 1) is None:
            raise ValueError("every block attends to all tokens without a model.window; leave it out, or set the window")
        depth = _resolved("depth", info)
        if depth is not None and any(index >= depth for index in value):
            raise ValueError(f"{max(value)} is no block of {depth}; they are numbered from 0 to {depth - 1}")
        if depth is not None and len(set(value)) == depth:
            raise ValueError(f"all {depth} blocks attend to all tokens, so model.window has no effect; leave both out")
        return value

    @field_validator("stochastic_depth_schedule")
    @classmethod
    def _something_is_scheduled(cls, value: str, info: ValidationInfo) -> str:
        if value != "linear" and info.data.get("stochastic_depth") == 0.0:
            raise ValueError("has no effect without stochastic depth; set model.stochastic_depth")
        if value == "linear" and info.data.get("stochastic_depth") and _resolved("depth", info) == 1:
            raise ValueError("linear drops nothing at the first block, and there is no other; set it to constant")
        return value

    @field_validator("patch_dropout")
    @classmethod
    def _windows_are_whole(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("window") is not None:
            raise ValueError("leaves holes in the windows of model.window; use one of the two")
        return value

    @field_validator("rotary")
    @classmethod
    def _heads_hold_turning_pairs(cls, value: RotaryConfig | None, info: ValidationInfo) -> RotaryConfig | None:
        if value is None:
            return value
        width, heads = _resolved("width", info), _resolved("num_heads", info)
        if width is not None and heads is not None and width // heads % 4:
            raise ValueError(f"turns pairs of channels for rows and columns: heads of {width // heads} channels are no multiple of 4")
        if info.data.get("window") is not None:
            raise ValueError("turns tokens by their place in the image, and model.window attends within windows; use one of the two")
        return value

    @field_validator("position_bias")
    @classmethod
    def _bias_knows_every_pair(cls, value: PositionBiasConfig | None, info: ValidationInfo) -> PositionBiasConfig | None:
        if value is None:
            return value
        if info.data.get("patch_dropout"):
            raise ValueError("is for a whole grid of patches, and model.patch_dropout leaves holes in it; use one of the two")
        if not isinstance(value, RelativeBiasConfig):
            return value
        if value.shared and info.data.get("window") is not None:
            raise ValueError("shared: one table cannot serve windows and the whole image of model.window; set it to false")
        mode = info.data.get("resampling", "timm")
        if POSITION_MODES[mode].relative is None:
            known = ", ".join(name for name, rules in POSITION_MODES.items() if rules.relative is not None)
            raise ValueError(f"model.resampling {mode} has no rule for a table of relative positions; use one of {known}")
        return value

    @field_validator("token_merging", "halting")
    @classmethod
    def _tokens_can_be_left_out(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None:
            refuse_excluded(str(info.field_name), info.data)
        return value

    @field_validator("halting")
    @classmethod
    def _tokens_can_halt_where_expected(cls, value: HaltingConfig | None, info: ValidationInfo) -> HaltingConfig | None:
        depth = _resolved("depth", info)
        if value is not None and value.prior is not None and depth is not None and value.prior.depth > depth:
            raise ValueError(f"prior.depth: {value.prior.depth:g} is deeper than the {depth} blocks of the model")
        return value

    @field_validator("naflex")
    @classmethod
    def _sequences_go_with_the_rest(cls, value: NaFlexConfig | None, info: ValidationInfo) -> NaFlexConfig | None:
        problem = naflex_problem(info.data) if value else None
        if problem is not None:
            raise ValueError(problem)
        return value

    @field_validator("attention", *FOR_TOKENS)
    @classmethod
    def _attention_goes_with_the_rest(cls, value: Any, info: ValidationInfo) -> Any:
        refuse_beside_channels(str(info.field_name), value=value, others=info.data)
        return value

    @field_validator("image_mean", "image_std")
    @classmethod
    def _one_per_channel(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        return one_per_channel(value, info)


def _resolved(name: str, info: ValidationInfo) -> int | None:
    """The size called `name` as given before, else the variant's; None where either was refused."""
    given = info.data.get(name)
    if given is not None or info.data.get("variant") is None:
        return given
    variant = parse_variant(info.data["variant"])
    value: int = variant.patch_size if name == "patch_size" else getattr(variant.size, name)
    return value
