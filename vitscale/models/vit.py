"""The vision transformer (Dosovitskiy et al. 2021): pre-norm blocks over patch tokens, with every switch of its descendants."""

# B batch, C channels, H height, W width, N tokens, P patches, D width

from functools import partial

import torch
from torch import Tensor, nn

from vitscale.models.base import Backbone, BlockRunner, Draws, Features, run_block
from vitscale.models.vit_settings import ViTSettings
from vitscale.models.vit_shape import ViTShape
from vitscale.nn.block import Block, ParallelBlock
from vitscale.nn.context import BlockContext
from vitscale.nn.counter_hash import SEED_KEY
from vitscale.nn.dropout import Dropout, kept_patches, take_patches
from vitscale.nn.factorised import FactorisedPositions
from vitscale.nn.grid_batch import GridBatch
from vitscale.nn.init import set_init, zeros
from vitscale.nn.input_form import PATCH_SIZE_KEY
from vitscale.nn.layers import norm_layer
from vitscale.nn.mixing_block import MixingBlock
from vitscale.nn.patch_embed import PatchEmbed
from vitscale.nn.pooling import AttentionPool, pool_tokens
from vitscale.nn.position_table import CLASS_ROW, GridTable, set_table
from vitscale.nn.positions import FixedPositions, learned_positions
from vitscale.nn.preprocess import Normaliser
from vitscale.nn.relative_bias import RelativeBias, RelativeBiasConfig
from vitscale.nn.resample import POSITION_MODES, Grid, resample_positions
from vitscale.nn.rope import AxialRope, MixedRopeConfig, Rotation
from vitscale.nn.stochastic_depth import kept_samples


class ViT(Backbone):
    """Prefix and patch tokens, positions, pre-norm blocks, final norm, pooling.

    Tokens come in the order class, distillation, registers, patches row by row. Initial values follow google-research/big_vision
    (models/vit.py): Glorot uniform for every projection of a block, tiny normal MLP biases, LeCun normal patch embedding, prefix
    tokens and other biases zeros; learned positions normal(0.02) as in vit_jax.
    """

    def __init__(self, config: ViTSettings) -> None:
        super().__init__()
        shape = config.shape
        self.width = shape.width
        self.image_size = shape.image_size
        self.patch_size = shape.patch_size
        self.num_channels = shape.num_channels
        self.num_prefix = shape.num_prefix
        self.num_prefix_positions = shape.num_prefix_positions
        self.default_patch = shape.patch_size if shape.image_size % shape.patch_size == 0 else shape.finest_patch
        self.pooling = config.pooling
        self.resampling = config.resampling
        self.norm_place = config.norm_place
        self.is_distilled = shape.is_distilled
        self.draw_keys = frozenset(config.draw_sources)
        self.form_keys = config.eval_form.keys
        self.block_runner: BlockRunner = run_block
        self.normaliser = Normaliser(mean=config.image_mean, std=config.image_std)
        self.embedding_dropout = Dropout(rate=config.dropout, site=0)
        self.patch_dropout = config.patch_dropout
        self.stem_stride = config.stem.stride
        self.stem = config.stem.build(num_channels=shape.num_channels)
        self.patch_embed = PatchEmbed(
            num_channels=shape.kernel_channels, patch_size=shape.kernel_side, width=shape.width, has_bias=config.patch_bias
        )
        self.cls_token = _tokens(int(shape.class_token), width=shape.width)
        self.dist_token = _tokens(int(shape.is_distilled), width=shape.width)
        self.reg_token = _tokens(shape.num_registers, width=shape.width)
        self.pos_embed: nn.Parameter | None = None
        self.fixed_positions: FixedPositions | None = None
        self.factorised_positions: FactorisedPositions | None = None
        if config.positions == "learned":
            table = GridTable(grid=Grid(rows=shape.grid, columns=shape.grid), prefix=_rows_of_prefix(shape))
            self.pos_embed = set_table(learned_positions(num_tokens=shape.num_positions, width=shape.width), table)
        elif config.positions == "factorised":
            self.factorised_positions = FactorisedPositions(grid=Grid(rows=shape.grid, columns=shape.grid), width=shape.width)
        elif config.positions != "none":
            self.fixed_positions = FixedPositions(config.positions, width=shape.width, class_token=False)
        self.embedding_norm = norm_layer(config.norm, width=shape.width, eps=config.layer_norm_eps) if config.embedding_norm else None
        self.rope = _axial_rope(config)
        self.shared_position_bias = _shared_position_bias(config)
        num_branches = _block_class(config).num_branches
        self.drop_rates = [config.block_spec(index).drop_rate for index in range(shape.depth) for _ in range(num_branches)]
        self.blocks = nn.ModuleList(self._new_block(config, index=index) for index in range(shape.depth))
        self.norm = norm_layer(config.norm, width=shape.width, eps=config.layer_norm_eps)
        self.attn_pool = _attention_pool(config) if config.pooling == "map" else None

    def forward(self, image_BCHW: Tensor, *, draws: Draws | None = None) -> Features:
        """Normalised images (B, C, H, W) to features, whose `tokens_BND` begin with the prefix tokens.

        Both sides are multiples of the patch size: that of `draws` where patches are flexible, else the model's. Away from
        `image_size` and the model's own patch size a learned table is resampled to the grid at hand by `model.resampling`, and trained
        through; a fixed one is that of the grid at hand. Patch dropout leaves `tokens_BND` without the dropped patches.
        """
        seed_B = None if draws is None else draws.get(SEED_KEY)
        patch_size = self._patch_size(draws)
        grid = Grid(rows=image_BCHW.shape[2] // patch_size, columns=image_BCHW.shape[3] // patch_size)
        patches_BP = None if seed_B is None else self._kept_patches(seed_B, grid=grid)
        patches_BND = self._cut(image_BCHW, patch_size=patch_size)
        x_BND = self._embed(patches_BND, grid=grid, seed_B=seed_B, patches_BP=patches_BP)
        context = self._context(x_BND, grid=grid, seed_B=seed_B, patches_BP=patches_BP)
        return self._encode(x_BND, context=context)

    def _new_block(self, config: ViTSettings, *, index: int) -> nn.Module:
        return _block_class(config)(config.block_spec(index), index=index)

    def _encode(self, x_BND: Tensor, *, context: BlockContext) -> Features:
        """What the blocks make of the embedded tokens."""
        for index, block in enumerate(self.blocks):
            x_BND = self.block_runner(index, block, x_BND, context=context)
        return self._features(x_BND)

    def _features(self, x_BND: Tensor, *, sizes_BN: Tensor | None = None) -> Features:
        """`sizes_BN` says how many patches each token stands for; None: one."""
        distilled_BD = self.norm(x_BND[:, 1]) if self.is_distilled else None
        return Features(pooled_BD=self._pool(x_BND, sizes_BN=sizes_BN), tokens_BND=x_BND, distilled_BD=distilled_BD)

    def _patch_size(self, draws: Draws | None) -> int:
        """Side of the patches of this batch, as its mark says; without one the kernel's own if they tile the image, else the smallest."""
        mark_BP0 = None if draws is None else draws.get(PATCH_SIZE_KEY)
        return self.default_patch if mark_BP0 is None else mark_BP0.shape[1]

    def _cut(self, image_BCHW: Tensor, *, patch_size: int) -> Tensor:
        """Patches of an image, or of its stem's features, as tokens."""
        if self.stem is None:
            patches_BND: Tensor = self.patch_embed(image_BCHW, patch_size=patch_size)
        else:
            patches_BND = self.patch_embed(self.stem(image_BCHW), patch_size=patch_size // self.stem_stride)
        return patches_BND

    def _embed(self, x_BND: Tensor, *, grid: Grid | GridBatch, seed_B: Tensor | None, patches_BP: Tensor | None) -> Tensor:
        """Patch tokens to all tokens, with positions."""
        prefix = [token.expand(x_BND.shape[0], -1, -1) for token in (self.cls_token, self.dist_token) if token is not None]
        registers = [] if self.reg_token is None else [self.reg_token.expand(x_BND.shape[0], -1, -1)]
        if self.num_prefix_positions:
            x_BND = self._with_positions(torch.cat([*prefix, x_BND], dim=1), grid=grid)
            prefix = [x_BND[:, : self.num_prefix_positions]] if registers else []
            x_BND = x_BND[:, self.num_prefix_positions :] if registers else x_BND
        else:
            x_BND = self._with_positions(x_BND, grid=grid)
        joined = [*prefix, *registers, x_BND]
        x_BND = torch.cat(joined, dim=1) if len(joined) > 1 else x_BND
        x_BND = self.embedding_dropout(x_BND, seed_B=seed_B)
        x_BND = x_BND if patches_BP is None else self._take_patches(x_BND, patches_BP)
        if self.embedding_norm is not None:
            x_BND = self.embedding_norm(x_BND)
        return x_BND

    def _with_positions(self, x_BND: Tensor, *, grid: Grid | GridBatch) -> Tensor:
        """Tokens plus the positions of all that have one."""
        if self.factorised_positions is not None:
            factorised: Tensor = self.factorised_positions(grid=grid)
            return x_BND + factorised
        if self.pos_embed is None and self.fixed_positions is None:
            return x_BND
        make = partial(self._positions, x_BND)
        return x_BND + (grid.table(make, num_prefix=self.num_prefix_positions) if isinstance(grid, GridBatch) else make(grid))

    def _positions(self, like: Tensor, grid: Grid) -> Tensor:
        """The table (1, N, D) of one grid: learned, with the rows of prefix tokens, or fixed."""
        if self.pos_embed is None:
            assert self.fixed_positions is not None
            return self.fixed_positions.like(like, grid=grid)
        side = self.image_size // self.patch_size
        own = Grid(rows=side, columns=side)
        if grid == own:
            return self.pos_embed
        num_prefix = self.num_prefix_positions
        table_1ND = resample_positions(self.pos_embed, source=own, target=grid, num_prefix=num_prefix, mode=self.resampling)
        return table_1ND.to(self.pos_embed.dtype)

    def _kept_patches(self, seed_B: Tensor, *, grid: Grid) -> Tensor | None:
        if not self.patch_dropout:
            return None
        return kept_patches(seed_B, num_patches=grid.rows * grid.columns, rate=self.patch_dropout)

    def _take_patches(self, x_BND: Tensor, patches_BP: Tensor) -> Tensor:
        prefix_BND, patches_BPD = x_BND[:, : self.num_prefix], x_BND[:, self.num_prefix :]
        return torch.cat([prefix_BND, take_patches(patches_BPD, patches_BP)], dim=1)

    def _context(self, like: Tensor, *, grid: Grid, seed_B: Tensor | None, patches_BP: Tensor | None) -> BlockContext:
        rotation: Rotation | None = None
        if self.rope is not None:
            rotation = self.rope.rotation(like, grid=grid, num_prefix=self.num_prefix, seed_B=seed_B)
            rotation = rotation if patches_BP is None else rotation.of_patches(patches_BP, num_prefix=self.num_prefix)
        shared = self.shared_position_bias
        return BlockContext(
            grid=grid,
            num_prefix=self.num_prefix,
            seed_B=seed_B,
            kept=() if seed_B is None else kept_samples(seed_B, rates=self.drop_rates),
            rotation=rotation,
            bias_HNN=None if shared is None else shared(grid=grid, num_prefix=self.num_prefix),
            patches_BP=patches_BP,
        )

    def _pool(self, x_BND: Tensor, *, sizes_BN: Tensor | None) -> Tensor:
        if self.pooling == "none":
            return x_BND.new_empty(x_BND.shape[0], 0)
        if self.pooling != "map":
            return pool_tokens(
                x_BND,
                norm=self.norm,
                pooling=self.pooling,
                norm_place=self.norm_place,
                num_prefix=self.num_prefix,
                sizes_BN=sizes_BN,
            )
        assert self.attn_pool is not None
        normed_BND = self.norm(x_BND) if self.norm_place == "tokens" else x_BND
        pooled_BD: Tensor = self.attn_pool(normed_BND, sizes_BN=sizes_BN)
        return pooled_BD if self.norm_place == "tokens" else self.norm(pooled_BD)


def _block_class(config: ViTSettings) -> type[Block | ParallelBlock]:
    if config.attention == "cross_covariance":
        return MixingBlock
    return ParallelBlock if config.parallel else Block


def _tokens(count: int, *, width: int) -> nn.Parameter | None:
    """`count` learned tokens (1, count, D); None without any."""
    return set_init(nn.Parameter(torch.empty(1, count, width)), zeros()) if count else None


def _rows_of_prefix(shape: ViTShape) -> tuple[str, ...]:
    """Which prefix tokens have a row in the learned table, in its order."""
    tokens = {CLASS_ROW: shape.class_token, "distillation": shape.is_distilled}
    return tuple(name for name, exists in tokens.items() if exists and shape.prefix_positions)


def _axial_rope(config: ViTSettings) -> AxialRope | None:
    """The turn that all blocks have in common; learned frequencies are each block's own."""
    if config.rotary is None or isinstance(config.rotary, MixedRopeConfig):
        return None
    shape = config.shape
    return config.rotary.build(head_width=shape.width // shape.num_heads, grid=Grid(rows=shape.grid, columns=shape.grid))


def _shared_position_bias(config: ViTSettings) -> RelativeBias | None:
    shape, bias = config.shape, config.position_bias
    rule = POSITION_MODES[config.resampling].relative
    if not isinstance(bias, RelativeBiasConfig) or not bias.shared:
        return None
    assert rule is not None, "validation asks for a rule where there is a table of offsets"
    grid = Grid(rows=shape.grid, columns=shape.grid)
    return bias.build(grid=grid, num_heads=shape.num_heads, has_prefix=shape.num_prefix > 0, rule=rule)


def _attention_pool(config: ViTSettings) -> AttentionPool:
    shape = config.shape
    return AttentionPool(
        width=shape.width,
        num_heads=shape.num_heads,
        mlp_width=shape.mlp_width,
        gelu=config.gelu,
        norm=config.norm,
        norm_eps=config.layer_norm_eps,
    )
