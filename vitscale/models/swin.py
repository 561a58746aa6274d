"""Swin Transformer and SwinV2 (Liu et al. 2021, 2022): attention in shifted windows, stages that halve the map and double the width."""

# B batch, C channels, H height, W width, N tokens, D width; of a map: R rows, C columns

from torch import Tensor, nn

from vitscale.models.base import Backbone, BlockRunner, Draws, Features, run_block
from vitscale.models.swin_settings import SwinSettings, Version
from vitscale.models.swin_shape import StageShape
from vitscale.nn.context import BlockContext
from vitscale.nn.counter_hash import SEED_KEY
from vitscale.nn.init import set_init, zeros
from vitscale.nn.layers import layer_norm
from vitscale.nn.log_spaced_bias import LogSpacedBias
from vitscale.nn.mlp import Mlp
from vitscale.nn.patch_embed import PatchEmbed
from vitscale.nn.pooling import pool_tokens
from vitscale.nn.preprocess import Normaliser
from vitscale.nn.relative_bias import RelativeBias
from vitscale.nn.resample import Grid
from vitscale.nn.stochastic_depth import add_branch, kept_samples
from vitscale.nn.window_attention import MATRIX_INIT, CosineWindowAttention, WindowAttention
from vitscale.nn.windows import Windows

_BIAS_HIDDEN_WIDTH = 512


class SwinConfig(SwinSettings):
    """A Swin Transformer, by name, by sizes, or by name with some sizes replaced."""

    def build(self) -> "Swin":
        """The model, with parameters on the current default device; see nn/init.py for their values."""
        return Swin(self)


class Block(nn.Module):
    """Version 1: `x + attention(norm(x))`, then `x + mlp(norm(x))`, on maps (B, R, C, D); each branch may be dropped by sample."""

    def __init__(self, config: SwinSettings, *, index: int, stage: StageShape, windows: Windows) -> None:
        super().__init__()
        self.index = index
        self.drop_rate = config.drop_rates[index]
        grid = Grid(stage.window, stage.window)
        bias = RelativeBias(grid=grid, num_heads=stage.num_heads, has_prefix=False, init=MATRIX_INIT)
        self.norm1 = layer_norm(stage.width, eps=config.layer_norm_eps)
        self.attn = WindowAttention(width=stage.width, num_heads=stage.num_heads, windows=windows, position_bias=bias)
        self.norm2 = layer_norm(stage.width, eps=config.layer_norm_eps)
        self.mlp = Mlp(width=stage.width, hidden_width=stage.mlp_width, gelu=config.gelu)

    def forward(self, x_BRCD: Tensor, *, context: BlockContext) -> Tensor:
        """(B, R, C, D) to (B, R, C, D)."""
        x_BRCD = add_branch(x_BRCD, self._attend, context=context, index=2 * self.index, rate=self.drop_rate)
        return add_branch(x_BRCD, self._feed_forward, context=context, index=2 * self.index + 1, rate=self.drop_rate)

    def _attend(self, x_BRCD: Tensor, _context: BlockContext) -> Tensor:
        y_BRCD: Tensor = self.attn(self.norm1(x_BRCD))
        return y_BRCD

    def _feed_forward(self, x_BRCD: Tensor, _context: BlockContext) -> Tensor:
        y_BRCD: Tensor = self.mlp(self.norm2(x_BRCD))
        return y_BRCD


class PostNormBlock(nn.Module):
    """Version 2: `x + norm(attention(x))`, then `x + norm(mlp(x))`, the norms' scales started at zero."""

    def __init__(self, config: SwinSettings, *, index: int, stage: StageShape, windows: Windows) -> None:
        super().__init__()
        self.index = index
        self.drop_rate = config.drop_rates[index]
        grid = Grid(stage.unit_window, stage.unit_window)
        bias = LogSpacedBias(num_heads=stage.num_heads, hidden_width=_BIAS_HIDDEN_WIDTH, pretrained_grid=grid)
        self.attn = CosineWindowAttention(width=stage.width, num_heads=stage.num_heads, windows=windows, position_bias=bias)
        self.norm1 = layer_norm(stage.width, eps=config.layer_norm_eps)
        self.mlp = Mlp(width=stage.width, hidden_width=stage.mlp_width, gelu=config.gelu)
        self.norm2 = layer_norm(stage.width, eps=config.layer_norm_eps)
        # A block starts as the identity, as in microsoft/Swin-Transformer, `_init_respostnorm`.
        set_init(self.norm1.weight, zeros())
        set_init(self.norm2.weight, zeros())

    def forward(self, x_BRCD: Tensor, *, context: BlockContext) -> Tensor:
        """(B, R, C, D) to (B, R, C, D)."""
        x_BRCD = add_branch(x_BRCD, self._attend, context=context, index=2 * self.index, rate=self.drop_rate)
        return add_branch(x_BRCD, self._feed_forward, context=context, index=2 * self.index + 1, rate=self.drop_rate)

    def _attend(self, x_BRCD: Tensor, _context: BlockContext) -> Tensor:
        y_BRCD: Tensor = self.norm1(self.attn(x_BRCD))
        return y_BRCD

    def _feed_forward(self, x_BRCD: Tensor, _context: BlockContext) -> Tensor:
        y_BRCD: Tensor = self.norm2(self.mlp(x_BRCD))
        return y_BRCD


class PatchMerging(nn.Module):
    """Four neighbouring tokens of width D to one of 2 D: normed before the projection in version 1, after it in version 2."""

    def __init__(self, width: int, *, version: Version, layer_norm_eps: float) -> None:
        super().__init__()
        self.norm_first = version == 1
        self.norm = layer_norm(4 * width if self.norm_first else 2 * width, eps=layer_norm_eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x_BRCD: Tensor) -> Tensor:
        """(B, R, C, D) to (B, ceil(R / 2), ceil(C / 2), 2 D); an odd side is padded with zeros."""
        rows, columns = x_BRCD.shape[1:3]
        if rows % 2 or columns % 2:
            x_BRCD = nn.functional.pad(x_BRCD, (0, 0, 0, columns % 2, 0, rows % 2))
        # Of the four, the upper left, the lower left, the upper right, the lower right.
        four_BRCD = x_BRCD.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        merged_BRCD: Tensor = self.reduction(self.norm(four_BRCD)) if self.norm_first else self.norm(self.reduction(four_BRCD))
        return merged_BRCD


class Swin(Backbone):
    """Patch embedding, stages of blocks with patch merging between them, final norm, and the average over the last map.

    `blocks` are those of all stages; `merges[s]` runs before the first block of stage s + 1. Windows and shifts are those of
    `image_size`; maps of other images are padded to whole windows. Initial values follow microsoft/Swin-Transformer:
    normal(0.02) for every matrix and table, zeros for biases.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        shape = config.shape
        self.width = shape.width
        self.image_size = shape.image_size
        self.patch_size = shape.patch_size
        self.num_channels = shape.num_channels
        self.draw_keys = frozenset(config.draw_sources)
        self.drop_rates = tuple(rate for rate in config.drop_rates for _ in range(2))
        self.block_runner: BlockRunner = run_block
        self.normaliser = Normaliser(mean=config.image_mean, std=config.image_std)
        first, eps = shape.stages[0], config.layer_norm_eps
        self.patch_embed = PatchEmbed(num_channels=shape.num_channels, patch_size=shape.patch_size, width=first.width)
        self.patch_norm = layer_norm(first.width, eps=eps)
        self.blocks = nn.ModuleList()
        for stage in shape.stages:
            self.blocks.extend(_stage_blocks(config, stage, first=len(self.blocks)))
        self.merges = nn.ModuleList(PatchMerging(stage.width, version=config.version, layer_norm_eps=eps) for stage in shape.stages[:-1])
        self.norm = layer_norm(shape.width, eps=eps)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                set_init(layer.weight, MATRIX_INIT)
                if layer.bias is not None:
                    set_init(layer.bias, zeros())
        depths = [stage.depth for stage in shape.stages]
        self._stage_starts = [sum(depths[:stage]) for stage in range(1, len(depths))]

    def forward(self, image_BCHW: Tensor, *, draws: Draws | None = None) -> Features:
        """Normalised images (B, C, H, W), sides multiples of the patch size, to features; `tokens_BND` is the last map, row by row.

        Where `draws` has seeds, samples skip branches by `stochastic_depth`.
        """
        rows, columns = (side // self.patch_size for side in image_BCHW.shape[2:])
        seed_B = None if draws is None else draws.get(SEED_KEY)
        kept = () if seed_B is None else kept_samples(seed_B, rates=self.drop_rates)
        context = BlockContext(grid=Grid(rows, columns), num_prefix=0, seed_B=seed_B, kept=kept)
        x_BRCD = self.patch_norm(self.patch_embed(image_BCHW)).unflatten(1, context.grid)
        for index, block in enumerate(self.blocks):
            if index in self._stage_starts:
                x_BRCD = self.merges[self._stage_starts.index(index)](x_BRCD)
            x_BRCD = self.block_runner(index, block, x_BRCD, context=context)
        tokens_BND = x_BRCD.flatten(1, 2)
        return Features(pooled_BD=pool_tokens(tokens_BND, norm=self.norm, pooling="mean"), tokens_BND=tokens_BND)


def _stage_blocks(config: SwinSettings, stage: StageShape, *, first: int) -> list[nn.Module]:
    """Blocks of one stage, numbered from `first`, every second one with shifted windows."""
    padding = config.window_padding
    windows = [Windows(side=stage.window, shift=shift, padding=padding) for shift in (0, stage.shift)]
    kind = Block if config.version == 1 else PostNormBlock
    return [kind(config, index=first + number, stage=stage, windows=windows[number % 2]) for number in range(stage.depth)]
