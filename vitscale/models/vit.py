"""The plain vision transformer (Dosovitskiy et al. 2021): pre-norm blocks over patch tokens, and its configuration."""

# B batch, C channels, H height, W width, N tokens, D width

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from vitscale.config import Config
from vitscale.models.base import Backbone, BlockRunner, BlockShape, Features, run_block
from vitscale.models.variants import parse_variant
from vitscale.nn.attention import Attention
from vitscale.nn.init import set_init, zeros
from vitscale.nn.layers import layer_norm
from vitscale.nn.mlp import Gelu, Mlp
from vitscale.nn.patch_embed import PatchEmbed
from vitscale.nn.pooling import Pooling, pool_tokens
from vitscale.nn.position_table import CLASS_ROW, GridTable, set_table
from vitscale.nn.positions import FixedPositions, Positions, learned_positions
from vitscale.nn.preprocess import Normaliser
from vitscale.nn.resample import Grid, PositionMode, resample_positions

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class ViTShape:
    """The sizes that decide a ViT's parameters, FLOPs and memory. Lengths of images and patches are in pixels."""

    width: int
    depth: int
    mlp_width: int
    num_heads: int
    patch_size: int
    image_size: int
    num_channels: int
    class_token: bool
    learned_positions: bool

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Patches and the class token, where there is one."""
        return self.grid**2 + int(self.class_token)

    @property
    def blocks(self) -> tuple[BlockShape, ...]:
        """Every block; they are all alike."""
        tokens = self.num_tokens
        return self.depth * (BlockShape(width=self.width, mlp_width=self.mlp_width, num_tokens=tokens, attended_tokens=tokens),)

    @property
    def forward_flops(self) -> int:
        """FLOPs of the forward pass of one image, without a head."""
        patch_embed = 2 * self.grid**2 * self.num_channels * self.patch_size**2 * self.width
        return sum(block.forward_flops for block in self.blocks) + patch_embed


class ViTConfig(Config):
    """A plain pre-norm vision transformer, by name, by sizes, or by name with some sizes replaced."""

    kind: Literal["vit"] = "vit"
    variant: str | None = None
    """Size and patch, for example S/16: mu, Ti, S, M, B, L, So400m, H, g, g-opt, G, G-opt, e, 7B or 22B, and any patch size.
    null: give width, depth, num_heads and patch_size."""
    patch_size: Count | None = None
    """Side of a patch in pixels; replaces the variant's."""
    image_size: int = Field(ge=1)
    """Side of the square input in pixels, a multiple of the patch size."""
    num_channels: int = Field(default=3, ge=1)
    """Channels of the input: 3 for colour, 1 for grey."""
    num_heads: Count | None = None
    """Attention heads; replaces the variant's."""
    width: Count | None = None
    """Width of the token vectors, a multiple of the number of heads; replaces the variant's."""
    depth: Count | None = None
    """Number of blocks; replaces the variant's."""
    mlp_width: Count | None = None
    """Hidden width of the MLP; replaces the variant's. null without a variant: 4 times the width."""
    gelu: Gelu = "exact"
    """exact: by the error function (timm, Hugging Face). tanh: the approximation that Google's released models use."""
    positions: Positions = "learned"
    """learned: a trained table. sincos2d_mae, sincos2d_big_vision: fixed 2-D sines and cosines; the width is then a multiple of 4."""
    resampling: PositionMode = "timm"
    """How the learned table is resampled for images of another size, here and where another model starts from these weights: by the
    name of the system that they come from, see docs/resampling.md."""
    pooling: Pooling = "cls"
    """cls: a class token. mean: the average of the patch tokens, without a class token."""
    layer_norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the variance in layer norms: 1e-6 in Google's and timm's models, 1e-12 by default in Hugging Face's."""
    image_mean: tuple[float, ...] = (0.5,)
    """Subtracted from the image, in units where white is 1: one number per channel, or one for all."""
    image_std: tuple[float, ...] = (0.5,)
    """Divides the image after that: one number per channel, or one for all."""

    @field_validator("variant")
    @classmethod
    def _variant_is_known(cls, value: str | None) -> str | None:
        if value is not None:
            parse_variant(value)
        return value

    @field_validator("patch_size", "num_heads", "width", "depth")
    @classmethod
    def _size_is_given(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None and info.data.get("variant", "unknown") is None:
            raise ValueError("required where no model.variant is given")
        return value

    @field_validator("image_size")
    @classmethod
    def _patches_tile_the_image(cls, value: int, info: ValidationInfo) -> int:
        patch = _resolved("patch_size", info)
        if patch is not None and value % patch:
            raise ValueError(f"{value} is not a multiple of model.patch_size {patch}; use for example {-(-value // patch) * patch}")
        return value

    @field_validator("width")
    @classmethod
    def _heads_divide_the_width(cls, value: int | None, info: ValidationInfo) -> int | None:
        width, heads = value or _resolved("width", info), _resolved("num_heads", info)
        if width is not None and heads is not None and width % heads:
            raise ValueError(f"{width} is not a multiple of model.num_heads {heads}")
        return value

    @field_validator("positions")
    @classmethod
    def _width_fits_the_table(cls, value: Positions, info: ValidationInfo) -> Positions:
        width = _resolved("width", info)
        if value != "learned" and width is not None and (width % 4 or width < 8):
            raise ValueError(f"{value} needs a model.width of at least 8 that is a multiple of 4, not {width}")
        return value

    @field_validator("image_mean", "image_std")
    @classmethod
    def _one_per_channel(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        channels = info.data.get("num_channels", len(value))
        if len(value) not in (1, channels):
            raise ValueError(f"give one number, or one for each of the model.num_channels {channels}, not {len(value)}")
        if info.field_name == "image_std" and min(value) <= 0:
            raise ValueError("every number must be greater than 0")
        return value

    @property
    def shape(self) -> ViTShape:
        """The sizes with the variant's filled in."""
        variant = parse_variant(self.variant) if self.variant is not None else None
        size = variant.size if variant else None
        width = self.width or (size and size.width)
        depth = self.depth or (size and size.depth)
        num_heads = self.num_heads or (size and size.num_heads)
        patch_size = self.patch_size or (variant and variant.patch_size)
        assert width, "validation lets no size be missing"
        assert depth, "validation lets no size be missing"
        assert num_heads, "validation lets no size be missing"
        assert patch_size, "validation lets no size be missing"
        return ViTShape(
            width=width,
            depth=depth,
            mlp_width=self.mlp_width or (size.mlp_width if size else 4 * width),
            num_heads=num_heads,
            patch_size=patch_size,
            image_size=self.image_size,
            num_channels=self.num_channels,
            class_token=self.pooling == "cls",
            learned_positions=self.positions == "learned",
        )

    def build(self) -> "ViT":
        """The model, with parameters on the current default device; see nn/init.py for their values."""
        return ViT(self)


def _resolved(name: str, info: ValidationInfo) -> int | None:
    """The size called `name` as given before, else the variant's; None where either was refused."""
    given = info.data.get(name)
    if given is not None or info.data.get("variant") is None:
        return given
    variant = parse_variant(info.data["variant"])
    value: int = variant.patch_size if name == "patch_size" else getattr(variant.size, name)
    return value


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(self, *, width: int, num_heads: int, mlp_width: int, gelu: Gelu, layer_norm_eps: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(width, eps=layer_norm_eps)
        self.attn = Attention(width=width, num_heads=num_heads)
        self.norm2 = layer_norm(width, eps=layer_norm_eps)
        self.mlp = Mlp(width=width, hidden_width=mlp_width, gelu=gelu)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        x_BND = x_BND + self.attn(self.norm1(x_BND))
        y_BND: Tensor = x_BND + self.mlp(self.norm2(x_BND))
        return y_BND


class ViT(Backbone):
    """Patch tokens, perhaps a class token, positions, pre-norm blocks, final norm, pooling.

    Initial values follow google-research/big_vision (models/vit.py): Glorot uniform for every projection of a block, tiny normal
    MLP biases, LeCun normal patch embedding, class token and other biases zeros; learned positions normal(0.02) as in vit_jax.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        shape = config.shape
        self.width = shape.width
        self.image_size = shape.image_size
        self.patch_size = shape.patch_size
        self.num_channels = shape.num_channels
        self.pooling = config.pooling
        self.resampling = config.resampling
        self.block_runner: BlockRunner = run_block
        self.normaliser = Normaliser(mean=config.image_mean, std=config.image_std)
        self.patch_embed = PatchEmbed(num_channels=shape.num_channels, patch_size=shape.patch_size, width=shape.width)
        self.cls_token = set_init(nn.Parameter(torch.empty(1, 1, shape.width)), zeros()) if shape.class_token else None
        self.pos_embed: nn.Parameter | None = None
        self.fixed_positions: FixedPositions | None = None
        if shape.learned_positions:
            table = GridTable(grid=Grid(rows=shape.grid, columns=shape.grid), prefix=(CLASS_ROW,) if shape.class_token else ())
            self.pos_embed = set_table(learned_positions(num_tokens=shape.num_tokens, width=shape.width), table)
        else:
            self.fixed_positions = FixedPositions(config.positions, width=shape.width, class_token=shape.class_token)
        eps = config.layer_norm_eps
        self.blocks = nn.ModuleList(
            Block(width=shape.width, num_heads=shape.num_heads, mlp_width=shape.mlp_width, gelu=config.gelu, layer_norm_eps=eps)
            for _ in range(shape.depth)
        )
        self.norm = layer_norm(shape.width, eps=eps)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return self.patch_embed.weight.dtype

    def normalise(self, image_BCHW: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to normalised images of the compute type on the same device."""
        return self.normaliser(image_BCHW, dtype=self.compute_dtype)

    def forward(self, image_BCHW: Tensor) -> Features:
        """Normalised images (B, C, H, W) to features. With a class token, `tokens_BND` has it first.

        Both sides are multiples of the patch size. Away from `image_size` a learned table is resampled to the grid at hand by
        `model.resampling`, and trained through; a fixed one is that of the grid at hand.
        """
        x_BND = self._embed(image_BCHW)
        for index, block in enumerate(self.blocks):
            x_BND = self.block_runner(index, block, x_BND)
        return Features(pooled_BD=pool_tokens(x_BND, norm=self.norm, pooling=self.pooling), tokens_BND=x_BND)

    def _embed(self, image_BCHW: Tensor) -> Tensor:
        x_BND: Tensor = self.patch_embed(image_BCHW)
        if self.cls_token is not None:
            x_BND = torch.cat([self.cls_token.expand(x_BND.shape[0], -1, -1), x_BND], dim=1)
        grid = Grid(rows=image_BCHW.shape[2] // self.patch_size, columns=image_BCHW.shape[3] // self.patch_size)
        if self.pos_embed is not None:
            return x_BND + self._learned_positions(self.pos_embed, grid=grid)
        assert self.fixed_positions is not None
        return x_BND + self.fixed_positions.like(x_BND, grid=grid)

    def _learned_positions(self, table_1ND: Tensor, *, grid: Grid) -> Tensor:
        side = self.image_size // self.patch_size
        own = Grid(rows=side, columns=side)
        if grid == own:
            return table_1ND
        num_prefix = 0 if self.cls_token is None else 1
        return resample_positions(table_1ND, source=own, target=grid, num_prefix=num_prefix, mode=self.resampling).to(table_1ND.dtype)
