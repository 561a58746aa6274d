"""The settings of a Hiera: its sizes and what its published models differ in, by name or one by one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from vitscale.dist.seeding import DrawSource
from vitscale.models.base import BackboneConfig
from vitscale.models.hiera_shape import HieraBlockSpec, HieraShape
from vitscale.models.settings import (
    IMAGENET,
    Count,
    as_the_variant_has_it,
    linear_drop_rates,
    one_per_channel,
    resolved_size,
    size_or_name,
    with_proposals,
)
from vitscale.nn.counter_hash import SEED_KEY, SeedSource
from vitscale.nn.mlp import Gelu
from vitscale.nn.resample import PositionMode

HieraName = Literal[
    "Hiera-T", "Hiera-S", "Hiera-B", "Hiera-B+", "Hiera-L", "Hiera-H", "Hiera-abswin-S", "Hiera-abswin-B",
]  # fmt: skip
Shortcut = Literal["project", "concatenate"]
"""What goes past the attention of a block that doubles the width. project: the normed tokens through a matrix, then the largest of
four. concatenate: the largest of four tokens and their mean, side by side."""

HIERA_PATCH_STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class HieraVariant:
    """A published model: width and heads of the first stage, blocks of each, and the settings that it fixes."""

    width: int
    depths: tuple[int, ...]
    num_heads: int
    settings: Mapping[str, Any] = field(default_factory=dict)


# Of Bolya et al. 2023 ("Window attention is bugged"), as trained for timm; models/hiera.py there. Its tables are resampled by timm's mode.
_ABSWIN: dict[str, Any] = {"window_positions": True, "layer_scale": 1e-5}

HIERA_VARIANTS: dict[str, HieraVariant] = {
    # Ryali et al. 2023, table 2; facebookresearch/hiera, hiera.py.
    "Hiera-T": HieraVariant(width=96, depths=(1, 2, 7, 2), num_heads=1),
    "Hiera-S": HieraVariant(width=96, depths=(1, 2, 11, 2), num_heads=1),
    "Hiera-B": HieraVariant(width=96, depths=(2, 3, 16, 3), num_heads=1),
    "Hiera-B+": HieraVariant(width=112, depths=(2, 3, 16, 3), num_heads=2),
    "Hiera-L": HieraVariant(width=144, depths=(2, 6, 36, 4), num_heads=2),
    "Hiera-H": HieraVariant(width=256, depths=(2, 6, 36, 4), num_heads=4),
    "Hiera-abswin-S": HieraVariant(
        width=96, depths=(1, 2, 11, 2), num_heads=1, settings={**_ABSWIN, "position_grid": 16, "shortcut": "concatenate"}
    ),
    "Hiera-abswin-B": HieraVariant(width=96, depths=(2, 3, 16, 3), num_heads=1, settings={**_ABSWIN, "position_grid": 14}),
}

_resolved = partial(resolved_size, variants=HIERA_VARIANTS)


class HieraSettings(BackboneConfig):
    """A Hiera, by name, by sizes, or by name with some sizes replaced."""

    kind: Literal["hiera"] = "hiera"
    variant: HieraName | None = None
    """A published model, which also fixes what makes it what it is; null: give width, depths and num_heads."""
    patch_size: Count = HIERA_PATCH_STRIDE
    """Pixels from one patch to the next (patch_stride elsewhere). Patches overlap: their side is twice that less 1."""
    num_channels: int = Field(default=3, ge=1)
    """Channels of the input: 3 for colour, 1 for grey."""
    width: Count | None = None
    """Width of the first stage (embed_dim elsewhere), doubled by every further one; replaces the variant's."""
    depths: tuple[Count, ...] | None = Field(default=None, min_length=2)
    """Number of blocks of each stage; every stage after the first begins with one that makes one token of four. Replaces the variant's."""
    num_heads: Count | None = None
    """Attention heads of the first stage, doubled by every further one; replaces the variant's."""
    image_size: int = Field(ge=1)
    """Side of the square input in pixels. It consists of whole mask units, of 2^(stages - 1) patches a side: with 4 stages and a
    patch_size of 4 it is a multiple of 32."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of the MLPs, in widths of their stage."""
    window_stages: int = Field(default=2, ge=0)
    """Stages, from the first on, whose attention stays within mask units, as does the first block after them; in the others every
    token attends to all."""
    shortcut: Shortcut = "project"
    """project: what goes past the attention of a block that doubles the width goes through a matrix, then the largest of four tokens
    is taken. concatenate: the largest of four tokens and their mean, side by side."""
    window_positions: bool = False
    """Whether there is a second table of positions, of those within a mask unit, which is not resampled with the first."""
    position_grid: Count | None = None
    """With window_positions: patches per side of the first table, which is resampled to those of the image. null: those of the image."""
    resampling: PositionMode = "hf"
    """How learned positions are resampled for images of another size, here and where another model starts from these weights: by the
    name of the system that they come from, see docs/resampling.md."""
    layer_scale: float | None = Field(default=None, gt=0)
    """Start of the learned factors of every channel at the end of each branch; null has none."""
    gelu: Gelu = "exact"
    """exact: by the error function, as released. tanh: its approximation."""
    layer_norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the variance in layer norms."""
    stochastic_depth: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training samples that skip a branch of the last block, and save its compute; it rises from 0 at the first block."""
    patch_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the mask units left out in training, others for each sample (patch_drop_rate in timm). No patch sees what is left out."""
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
        model = HIERA_VARIANTS.get(name) if isinstance(name, str) else None
        if model is None:
            return with_proposals(values, proposals={})
        mode = {"resampling": "timm"} if model.settings else {}
        return with_proposals(values, proposals={**IMAGENET, **mode, **model.settings})

    @field_validator("shortcut", "window_positions", "position_grid", "layer_scale")
    @classmethod
    def _is_the_variants(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.data.get("variant")
        return as_the_variant_has_it(value, info, fixed=HIERA_VARIANTS[name].settings if name else {})

    @field_validator("width", "depths", "num_heads")
    @classmethod
    def _size_is_given(cls, value: int | tuple[int, ...] | None, info: ValidationInfo) -> int | tuple[int, ...] | None:
        return size_or_name(value, info)

    @field_validator("num_heads")
    @classmethod
    def _heads_divide_the_width(cls, value: int | None, info: ValidationInfo) -> int | None:
        width, heads = _resolved("width", info), value or _resolved("num_heads", info)
        if width is not None and heads is not None and width % heads:
            raise ValueError(f"the width {width} of the first stage is not a multiple of its {heads} heads")
        return value

    @field_validator("image_size")
    @classmethod
    def _units_tile_the_image(cls, value: int, info: ValidationInfo) -> int:
        stride, depths = info.data.get("patch_size"), _resolved("depths", info)
        if stride is None or depths is None:
            return value
        unit = stride * 2 ** (len(depths) - 1)
        if value % unit:
            raise ValueError(
                f"{value} is not a multiple of {unit}, the pixels of a mask unit: model.patch_size {stride}, doubled by each of the"
                f" {len(depths)} stages after the first; use for example {-(-value // unit) * unit}"
            )
        return value

    @field_validator("window_stages")
    @classmethod
    def _stages_exist(cls, value: int, info: ValidationInfo) -> int:
        depths = _resolved("depths", info)
        if depths is not None and value > len(depths):
            raise ValueError(f"{value} of {len(depths)} stages; use at most {len(depths)}")
        return value

    @field_validator("position_grid")
    @classmethod
    def _grid_is_used(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("window_positions", True):
            raise ValueError("has an effect with model.window_positions only; set that to true, or leave this out")
        return value

    @field_validator("image_mean", "image_std")
    @classmethod
    def _one_per_channel(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        return one_per_channel(value, info)

    @property
    def shape(self) -> HieraShape:
        """The sizes with the variant's filled in, and what follows from the size of the image."""
        size = HIERA_VARIANTS[self.variant] if self.variant is not None else None
        width = self.width or (size and size.width)
        depths = self.depths or (size and size.depths)
        num_heads = self.num_heads or (size and size.num_heads)
        assert width, "validation lets no size be missing"
        assert depths, "validation lets no size be missing"
        assert num_heads, "validation lets no size be missing"
        return HieraShape(
            specs=tuple(self._specs(depths, width=width, num_heads=num_heads)),
            num_poolings=len(depths) - 1,
            patch_stride=self.patch_size,
            image_size=self.image_size,
            num_channels=self.num_channels,
            projects=self.shortcut == "project",
            layer_scale=self.layer_scale is not None,
            patch_dropout=self.patch_dropout,
        )

    @property
    def drop_rates(self) -> tuple[float, ...]:
        """Share of the samples that skip a branch, for each block."""
        return linear_drop_rates(self.stochastic_depth, depth=len(self.shape.specs))

    @property
    def draw_sources(self) -> dict[str, DrawSource]:
        """A seed for each training sample where anything is dropped."""
        return {SEED_KEY: SeedSource()} if self.stochastic_depth or self.patch_dropout else {}

    def _specs(self, depths: tuple[int, ...], *, width: int, num_heads: int) -> list[HieraBlockSpec]:
        specs = []
        for stage, depth in enumerate(depths):
            for number in range(depth):
                # The block that pools belongs to the new stage but attends as the one before it did.
                pools = stage > 0 and number == 0
                own_width = width * 2**stage
                specs.append(
                    HieraBlockSpec(
                        input_width=own_width // 2 if pools else own_width,
                        width=own_width,
                        mlp_width=int(own_width * self.mlp_ratio),
                        num_heads=num_heads * 2**stage,
                        unit_tokens=4 ** (len(depths) - 1 - stage),
                        within_units=stage - pools < self.window_stages,
                    )
                )
        return specs
