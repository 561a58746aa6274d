"""The settings of a Swin Transformer: its sizes, version and windows, by name or one by one."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from vitscale.dist.seeding import DrawSource
from vitscale.models.base import BackboneConfig
from vitscale.models.settings import (
    IMAGENET,
    Count,
    as_the_variant_has_it,
    linear_drop_rates,
    one_per_channel,
    resolved_size,
    size_or_name,
    tiling_side,
    with_proposals,
)
from vitscale.models.swin_shape import StageShape, SwinShape
from vitscale.nn.counter_hash import SEED_KEY, SeedSource
from vitscale.nn.mlp import Gelu
from vitscale.nn.resample import POSITION_MODES, PositionMode
from vitscale.nn.windows import WindowPadding

Version = Literal[1, 2]
SwinName = Literal["Swin-T", "Swin-S", "Swin-B", "Swin-L", "SwinV2-T", "SwinV2-S", "SwinV2-B", "SwinV2-L"]

SWIN_PATCH_SIZE = 4
_WINDOW_SIZES: dict[Version, int] = {1: 7, 2: 8}


@dataclass(frozen=True, kw_only=True)
class SwinVariant:
    """A published model: its version, the width of the first stage, and blocks and heads of each."""

    version: Version
    width: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]


# Liu et al. 2021, section 3.3; Liu et al. 2022, table 1 and section 4.
SWIN_VARIANTS: dict[str, SwinVariant] = {
    "Swin-T": SwinVariant(version=1, width=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "Swin-S": SwinVariant(version=1, width=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "Swin-B": SwinVariant(version=1, width=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "Swin-L": SwinVariant(version=1, width=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
    "SwinV2-T": SwinVariant(version=2, width=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "SwinV2-S": SwinVariant(version=2, width=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "SwinV2-B": SwinVariant(version=2, width=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "SwinV2-L": SwinVariant(version=2, width=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}

_resolved = partial(resolved_size, variants=SWIN_VARIANTS)


class SwinSettings(BackboneConfig):
    """A Swin Transformer, by name, by sizes, or by name with some sizes replaced."""

    kind: Literal["swin"] = "swin"
    variant: SwinName | None = None
    """A published model, which also fixes the version; null: give width, depths and num_heads."""
    version: Version = 1
    """1: norms before attention and MLP, scaled dot products, a table of position biases. 2: norms after them, cosines, position
    biases computed from log-spaced offsets."""
    patch_size: Count = SWIN_PATCH_SIZE
    """Side of a patch in pixels."""
    image_size: int = Field(ge=1)
    """Side of the square input in pixels, a multiple of the patch size. Maps whose side is no multiple of the window's are padded."""
    num_channels: int = Field(default=3, ge=1)
    """Channels of the input: 3 for colour, 1 for grey."""
    width: Count | None = None
    """Width of the first stage (embed_dim elsewhere), doubled by every further one; replaces the variant's."""
    depths: tuple[Count, ...] | None = Field(default=None, min_length=1)
    """Number of blocks of each stage; replaces the variant's."""
    num_heads: tuple[Count, ...] | None = None
    """Attention heads of each stage; replaces the variant's."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of the MLPs, in widths of their stage."""
    window_size: Count | None = None
    """Side of the windows in tokens. A stage whose map is smaller has one window of that size. null: 7 in version 1, 8 in version 2."""
    window_padding: WindowPadding = "before_shift"
    """Where windows at the border are filled up: before_shift as in Swin for detection and Hugging Face, after_shift as in timm.
    Of no effect where window_size divides every map."""
    pretrained_window_sizes: tuple[Annotated[int, Field(ge=2)], ...] | None = None
    """For version 2: the windows of each stage in pre-training, by which offsets are scaled. null: those of this model."""
    resampling: PositionMode = "swin"
    """For version 1: how a model with other windows that starts from these weights resamples their tables, by the name of the system
    that they come from, see docs/resampling.md."""
    gelu: Gelu = "exact"
    """exact: by the error function, as released. tanh: its approximation."""
    layer_norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance in layer norms."""
    stochastic_depth: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training samples that skip a branch of the last block, and save its compute; it rises from 0 at the first block.
    The paper: 0.2 for T, 0.3 for S, 0.5 for B."""
    image_mean: tuple[float, ...] = (0.5,)
    """Subtracted from the image, in units where white is 1: one number per channel, or one for all."""
    image_std: tuple[float, ...] = (0.5,)
    """Divides the image after that: one number per channel, or one for all."""

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_variant(cls, values: Any) -> Any:
        """Fill in what a published model fixes or proposes; what is given as well is compared once it has its type."""
        if not isinstance(values, dict):
            return values
        name = values.get("variant")
        model = SWIN_VARIANTS.get(name) if isinstance(name, str) else None
        return with_proposals(values, proposals={"version": model.version, **IMAGENET} if model else {})

    @field_validator("version")
    @classmethod
    def _is_the_variants(cls, value: Version, info: ValidationInfo) -> Version:
        name = info.data.get("variant")
        return as_the_variant_has_it(value, info, fixed={"version": SWIN_VARIANTS[name].version} if name else {})

    @field_validator("image_size")
    @classmethod
    def _patches_tile_the_image(cls, value: int, info: ValidationInfo) -> int:
        return tiling_side(value, patch=info.data.get("patch_size"))

    @field_validator("width", "depths", "num_heads")
    @classmethod
    def _size_is_given(cls, value: int | tuple[int, ...] | None, info: ValidationInfo) -> int | tuple[int, ...] | None:
        return size_or_name(value, info)

    @field_validator("num_heads")
    @classmethod
    def _heads_divide_the_widths(cls, value: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        width, depths = _resolved("width", info), _resolved("depths", info)
        heads = value or _resolved("num_heads", info)
        if width is None or depths is None or heads is None:
            return value  # what is missing is told where it is missing
        if len(heads) != len(depths):
            raise ValueError(f"{len(heads)} numbers for {len(depths)} stages; model.depths and model.num_heads have one for each")
        for stage, stage_heads in enumerate(heads):
            if width * 2**stage % stage_heads:
                raise ValueError(f"the width {width * 2**stage} of stage {stage + 1} is not a multiple of its {stage_heads} heads")
        return value

    @field_validator("pretrained_window_sizes")
    @classmethod
    def _one_per_stage(cls, value: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        if value is None:
            return value
        if info.data.get("version") == 1:
            raise ValueError("has no meaning in version 1, whose table is resampled by init_from; leave it out, or set model.version to 2")
        depths = _resolved("depths", info)
        if depths is not None and len(value) != len(depths):
            raise ValueError(f"{len(value)} numbers for {len(depths)} stages; give one for each")
        return value

    @field_validator("resampling")
    @classmethod
    def _mode_knows_relative_tables(cls, value: PositionMode, info: ValidationInfo) -> PositionMode:
        if POSITION_MODES[value].relative is None:
            known = ", ".join(mode for mode, rules in POSITION_MODES.items() if rules.relative is not None)
            raise ValueError(f"{value} has no rule for tables of relative positions; use one of {known}")
        if value != "swin" and info.data.get("version") == 2:
            raise ValueError("has no effect in version 2, which computes its biases for any window; leave it out")
        return value

    @field_validator("stochastic_depth")
    @classmethod
    def _a_block_drops(cls, value: float, info: ValidationInfo) -> float:
        if value and _resolved("depths", info) == (1,):
            raise ValueError("drops nothing at the first block, and there is no other; leave it out")
        return value

    @field_validator("image_mean", "image_std")
    @classmethod
    def _one_per_channel(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        return one_per_channel(value, info)

    @property
    def shape(self) -> SwinShape:
        """The sizes with the variant's filled in, and what follows from the size of the image."""
        size = SWIN_VARIANTS[self.variant] if self.variant is not None else None
        width = self.width or (size and size.width)
        depths = self.depths or (size and size.depths)
        num_heads = self.num_heads or (size and size.num_heads)
        assert width, "validation lets no size be missing"
        assert depths, "validation lets no size be missing"
        assert num_heads, "validation lets no size be missing"
        stages = tuple(
            self._stage(index, width=width * 2**index, depth=depth, num_heads=heads)
            for index, (depth, heads) in enumerate(zip(depths, num_heads, strict=True))
        )
        return SwinShape(stages=stages, patch_size=self.patch_size, image_size=self.image_size, num_channels=self.num_channels)

    @property
    def drop_rates(self) -> tuple[float, ...]:
        """Share of the samples that skip a branch, for each block."""
        depth = sum(stage.depth for stage in self.shape.stages)
        return linear_drop_rates(self.stochastic_depth, depth=depth)

    @property
    def draw_sources(self) -> dict[str, DrawSource]:
        """A seed for each training sample where anything is dropped."""
        return {SEED_KEY: SeedSource()} if self.stochastic_depth else {}

    def _stage(self, index: int, *, width: int, depth: int, num_heads: int) -> StageShape:
        grid = -(-self.image_size // (self.patch_size * 2**index))
        largest = self.window_size or _WINDOW_SIZES[self.version]
        window = min(largest, grid)
        return StageShape(
            width=width,
            mlp_width=int(width * self.mlp_ratio),
            depth=depth,
            num_heads=num_heads,
            grid=grid,
            window=window,
            # One window has no neighbours to exchange anything with.
            shift=window // 2 if grid > window else 0,
            by_cosines=self.version == 2,
            unit_window=self.pretrained_window_sizes[index] if self.pretrained_window_sizes else window,
        )
