"""Hiera (Ryali et al. 2023): attention within mask units, then among all tokens, with queries pooled from stage to stage."""

# B batch, C channels, H height, W width, N tokens, D width; of a map: R rows, C columns; U mask units, S tokens of a unit

import torch
from torch import Tensor, nn

from vitscale.models.base import Backbone, BlockRunner, Draws, Features, run_block
from vitscale.models.hiera_settings import HieraSettings, Shortcut
from vitscale.models.hiera_shape import HieraBlockSpec
from vitscale.nn.block import scaled
from vitscale.nn.context import BlockContext
from vitscale.nn.counter_hash import SEED_KEY
from vitscale.nn.dropout import kept_patches, take_patches
from vitscale.nn.init import set_init, zeros
from vitscale.nn.layers import LayerScale, layer_norm
from vitscale.nn.mlp import Mlp
from vitscale.nn.pooling import pool_tokens
from vitscale.nn.position_table import GridTable, set_table
from vitscale.nn.preprocess import Normaliser
from vitscale.nn.resample import Grid, resample_positions
from vitscale.nn.stochastic_depth import add_branch, kept_samples
from vitscale.nn.unit_attention import HIERA_BIAS, HIERA_MATRIX, UnitAttention, hiera_linear, pool_units, to_units


class HieraConfig(HieraSettings):
    """A Hiera, by name, by sizes, or by name with some sizes replaced."""

    def build(self) -> "Hiera":
        """The model, with parameters on the current default device; see nn/init.py for their values."""
        return Hiera(self)


class HieraBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`, on mask units (B, U, S, D); each branch may be dropped by sample.

    Where it pools, what goes past the attention is made of the same four tokens and doubled in width, see `Shortcut`.
    """

    def __init__(self, config: HieraSettings, spec: HieraBlockSpec, *, index: int) -> None:
        super().__init__()
        self.index = index
        self.drop_rate = config.drop_rates[index]
        self.pools = spec.pools
        self.shortcut: Shortcut = config.shortcut
        scale, eps = config.layer_scale, config.layer_norm_eps
        self.norm1 = _norm(spec.input_width, eps=eps)
        self.proj = hiera_linear(spec.input_width, spec.width) if spec.pools and config.shortcut == "project" else None
        self.attn = UnitAttention(
            in_width=spec.input_width, width=spec.width, num_heads=spec.num_heads, within_units=spec.within_units, pools=spec.pools
        )
        self.ls1 = LayerScale(spec.width, init=scale) if scale else None
        self.norm2 = _norm(spec.width, eps=eps)
        self.mlp = Mlp(width=spec.width, hidden_width=spec.mlp_width, gelu=config.gelu)
        for layer in (self.mlp.fc1, self.mlp.fc2):
            set_init(layer.weight, HIERA_MATRIX)
            set_init(layer.bias, HIERA_BIAS)
        self.ls2 = LayerScale(spec.width, init=scale) if scale else None

    def forward(self, x_BUSD: Tensor, *, context: BlockContext) -> Tensor:
        """(B, U, S, input width) to (B, U, S or S / 4, D)."""
        index, rate = 2 * self.index, self.drop_rate
        if self.pools:
            normed_BUSD = self.norm1(x_BUSD)
            past_BUSD = self._past(x_BUSD, normed_BUSD)
            x_BUSD = add_branch(normed_BUSD, self._attend, context=context, index=index, rate=rate, past_BND=past_BUSD)
        else:
            x_BUSD = add_branch(x_BUSD, self._norm_and_attend, context=context, index=index, rate=rate)
        return add_branch(x_BUSD, self._feed_forward, context=context, index=index + 1, rate=rate)

    def _past(self, x_BUSD: Tensor, normed_BUSD: Tensor) -> Tensor:
        """What goes past the attention of a block that pools."""
        if self.proj is not None:
            return pool_units(self.proj(normed_BUSD))
        return torch.cat([pool_units(x_BUSD), pool_units(x_BUSD, average=True)], dim=-1)

    def _norm_and_attend(self, x_BUSD: Tensor, context: BlockContext) -> Tensor:
        return self._attend(self.norm1(x_BUSD), context)

    def _attend(self, normed_BUSD: Tensor, _context: BlockContext) -> Tensor:
        return scaled(self.attn(normed_BUSD), by=self.ls1)

    def _feed_forward(self, x_BUSD: Tensor, _context: BlockContext) -> Tensor:
        return scaled(self.mlp(self.norm2(x_BUSD)), by=self.ls2)


class OverlappingPatchEmbed(nn.Module):
    """A convolution whose stride is smaller than its kernel, so that patches share their borders; the image is padded with zeros."""

    def __init__(self, *, num_channels: int, kernel: int, stride: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(num_channels, width, kernel_size=kernel, stride=stride, padding=kernel // 2)
        set_init(self.proj.weight, HIERA_MATRIX)
        assert self.proj.bias is not None
        set_init(self.proj.bias, zeros())

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, H, W), sides multiples of the stride, to a map (B, R, C, D)."""
        x_BDRC: Tensor = self.proj(image_BCHW)
        return x_BDRC.permute(0, 2, 3, 1)


class Hiera(Backbone):
    """Patch embedding, learned positions, blocks that pool from stage to stage, the average over all tokens, final norm.

    Tokens lie mask unit by mask unit all the way, and at the end every unit is one token. Initial values follow
    facebookresearch/hiera: normal(0.02) for every matrix and table, 0.02 for biases of matrices and norms.
    """

    def __init__(self, config: HieraSettings) -> None:
        super().__init__()
        shape = config.shape
        self.width = shape.width
        self.image_size = shape.image_size
        self.patch_size = shape.patch_size
        self.num_channels = shape.num_channels
        self.patch_stride = shape.patch_stride
        self.num_poolings = shape.num_poolings
        self.resampling = config.resampling
        self.patch_dropout = config.patch_dropout
        self.draw_keys = frozenset(config.draw_sources)
        self.drop_rates = tuple(rate for rate in config.drop_rates for _ in range(2))
        self.block_runner: BlockRunner = run_block
        self.normaliser = Normaliser(mean=config.image_mean, std=config.image_std)
        width = shape.specs[0].width
        self.patch_embed = OverlappingPatchEmbed(
            num_channels=shape.num_channels, kernel=shape.kernel_side, stride=shape.patch_stride, width=width
        )
        side = config.position_grid or shape.grid
        self.position_grid = Grid(side, side)
        self.pos_embed = set_table(_table(side**2, width=width), GridTable(grid=self.position_grid))
        self.window_pos_embed = _table(shape.unit_side**2, width=width) if config.window_positions else None
        self.blocks = nn.ModuleList(HieraBlock(config, spec, index=index) for index, spec in enumerate(shape.specs))
        self.norm = _norm(shape.width, eps=config.layer_norm_eps)

    def forward(self, image_BCHW: Tensor, *, draws: Draws | None = None) -> Features:
        """Normalised images (B, C, H, W), of whole mask units, to features; `tokens_BND` has one token for each, row by row.

        Where `draws` has seeds, samples skip branches by `stochastic_depth`, and `tokens_BND` is without the units that
        `patch_dropout` leaves out.
        """
        seed_B = None if draws is None else draws.get(SEED_KEY)
        kept = () if seed_B is None else kept_samples(seed_B, rates=self.drop_rates)
        grid = Grid(*(side // self.patch_stride for side in image_BCHW.shape[2:]))
        context = BlockContext(grid=grid, num_prefix=0, seed_B=seed_B, kept=kept)
        kept_BK = self._kept_units(grid, seed_B=seed_B)
        if kept_BK is not None:
            image_BCHW = image_BCHW * self._seen(image_BCHW, kept_BK)
        x_BRCD: Tensor = self.patch_embed(image_BCHW) + self._positions(grid)
        x_BUSD = to_units(x_BRCD, num_poolings=self.num_poolings)
        if kept_BK is not None:
            x_BUSD = take_patches(x_BUSD.flatten(2), kept_BK).unflatten(2, x_BUSD.shape[2:])
        for index, block in enumerate(self.blocks):
            x_BUSD = self.block_runner(index, block, x_BUSD, context=context)
        tokens_BND = x_BUSD.flatten(1, 2)
        pooled_BD = pool_tokens(tokens_BND, norm=self.norm, pooling="mean", norm_place="pooled")
        return Features(pooled_BD=pooled_BD, tokens_BND=tokens_BND)

    def _kept_units(self, grid: Grid, *, seed_B: Tensor | None) -> Tensor | None:
        """The mask units (B, K) that are left in training; None: all."""
        if seed_B is None or not self.patch_dropout:
            return None
        num_units = grid.rows * grid.columns // 4**self.num_poolings
        return kept_patches(seed_B, num_patches=num_units, rate=self.patch_dropout)

    def _seen(self, image_BCHW: Tensor, kept_BK: Tensor) -> Tensor:
        """1 in the pixels of units that are kept and 0 in others (B, 1, H, W): patches overlap, and would see what is left out."""
        units = Grid(*(side // self.patch_size for side in image_BCHW.shape[2:]))
        seen_BU = image_BCHW.new_zeros(len(kept_BK), units.rows * units.columns).scatter_(1, kept_BK, 1)
        seen_B1RC: Tensor = seen_BU.unflatten(1, (1, *units))
        return seen_B1RC.repeat_interleave(self.patch_size, dim=2).repeat_interleave(self.patch_size, dim=3)

    def _positions(self, grid: Grid) -> Tensor:
        """What is added to a map of `grid`, (1, R, C, D): the table, resampled where its grid is another, and that of the units."""
        table_1ND: Tensor = self.pos_embed
        if grid != self.position_grid:
            resampled_1ND = resample_positions(table_1ND, source=self.position_grid, target=grid, num_prefix=0, mode=self.resampling)
            table_1ND = resampled_1ND.to(table_1ND.dtype)
        table_1RCD: Tensor = table_1ND.unflatten(1, grid)
        if self.window_pos_embed is None:
            return table_1RCD
        side: int = 2**self.num_poolings
        units_1RCD: Tensor = self.window_pos_embed.unflatten(1, (side, side)).repeat(1, grid.rows // side, grid.columns // side, 1)
        return table_1RCD + units_1RCD


def _norm(width: int, *, eps: float) -> nn.LayerNorm:
    layer = layer_norm(width, eps=eps)
    set_init(layer.bias, HIERA_BIAS)
    return layer


def _table(num_tokens: int, *, width: int) -> nn.Parameter:
    return set_init(nn.Parameter(torch.empty(1, num_tokens, width)), HIERA_MATRIX)
