"""The sizes of a vision transformer, and what follows from them: tokens, FLOPs, the blocks that the planner counts."""

from dataclasses import dataclass, replace
from typing import Literal

from vitscale.models.base import BlockShape
from vitscale.nn.dropout import num_kept_patches
from vitscale.nn.stem import StemShape
from vitscale.nn.stems import StemConfig
from vitscale.nn.token_merging import matching_flops, tokens_merged


@dataclass(frozen=True, kw_only=True)
class ViTShape:
    """The sizes that decide a ViT's FLOPs and memory in training. Lengths of images and patches are in pixels."""

    width: int
    depth: int
    mlp_width: int
    num_heads: int
    patch_size: int
    flexible_patches: tuple[int, ...]
    sequence_length: int | None
    image_size: int
    num_channels: int
    stem_config: StemConfig
    embedding_norm: bool
    class_token: bool
    is_distilled: bool
    num_registers: int
    learned_positions: bool
    prefix_positions: bool
    pooling: Literal["cls", "mean", "map", "none"]
    is_gated: bool
    is_parallel: bool
    qk_norm: bool
    mlp_norm: bool
    layer_scale: bool
    drops_values: bool
    window: int | None
    global_blocks: tuple[int, ...]
    patch_dropout: float
    rotary: Literal["dinov3", "eva02", "mixed"] | None
    position_bias: Literal["relative", "log_spaced", "decomposed"] | None
    halts: bool
    """Whether tokens leave at different depths; what is counted is that none does."""
    mixes_channels: bool
    """Whether attention is between channels instead of tokens."""
    merged_tokens: tuple[int, ...]
    """How many patches each block is to merge away; empty where none does."""

    @property
    def grid(self) -> int:
        """Patches per side, at the size of patch at which the kernel is kept: the learned table's."""
        return self.image_size // self.patch_size

    @property
    def finest_patch(self) -> int:
        """Side of the smallest patches that images are cut into."""
        return min(self.flexible_patches, default=self.patch_size)

    @property
    def token_grid(self) -> int:
        """Patches per side of an image, the smallest patches that there are."""
        return self.image_size // self.finest_patch

    @property
    def stem(self) -> StemShape | None:
        """What comes before patches are cut; None: nothing does."""
        return self.stem_config.shape(num_channels=self.num_channels, image_size=self.image_size)

    @property
    def kernel_side(self) -> int:
        """Side of a patch where it is cut, in positions of the stem's features, or in pixels of the image."""
        return self.patch_size // self.stem_config.stride

    @property
    def kernel_channels(self) -> int:
        """Channels that patches are cut from."""
        return self.stem_config.out_channels(self.num_channels)

    @property
    def num_patches(self) -> int:
        """Patches of an image at most."""
        return self.sequence_length or self.token_grid**2

    @property
    def num_prefix(self) -> int:
        """Class, distillation and register tokens."""
        return int(self.class_token) + int(self.is_distilled) + self.num_registers

    @property
    def num_prefix_positions(self) -> int:
        """Prefix tokens that have a row in the learned table: class and distillation token, where they have one; registers never do."""
        return int(self.class_token) + int(self.is_distilled) if self.learned_positions and self.prefix_positions else 0

    @property
    def num_positions(self) -> int:
        """Rows of the table of learned positions."""
        return self.grid**2 + self.num_prefix_positions

    @property
    def num_tokens(self) -> int:
        """Tokens that pass through the blocks: prefix tokens and patches, of which patch dropout leaves a part in training."""
        return self.num_prefix + num_kept_patches(self.num_patches, rate=self.patch_dropout)

    @property
    def blocks(self) -> tuple[BlockShape, ...]:
        """Every block; they are all alike but for the windows of their attention and the tokens that are merged."""
        num_tokens, blocks = self.num_tokens, []
        for index in range(self.depth):
            block = self._block(window=self.window_of(index), num_tokens=num_tokens)
            if self.merged_tokens:
                block = self._merging(block, wanted=self.merged_tokens[index])
            blocks.append(block)
            num_tokens = block.mlp_tokens
        return tuple(blocks)

    @property
    def forward_flops(self) -> int:
        """FLOPs of the forward pass of one image, without a head. Branches that stochastic depth leaves out are counted; the resampling
        of flexible patches, once per batch, is not."""
        kernel_side = self.finest_patch // self.stem_config.stride
        embedding = 2 * self.num_patches * self.kernel_channels * kernel_side**2 * self.width
        embedding += self.stem.forward_flops if self.stem is not None else 0
        return sum(block.forward_flops for block in self.blocks) + embedding + self._pooling_flops()

    def flops_by_tokens(self) -> tuple[tuple[int, ...], ...]:
        """For each block its FLOPs for 0, 1, 2, ... tokens of one image that attend to each other."""
        return tuple(
            tuple(replace(block, num_tokens=count, attended_tokens=count).forward_flops for count in range(block.num_tokens + 1))
            for block in self.blocks
        )

    def window_of(self, index: int) -> int | None:
        """Side of the windows of block number `index`; None: it attends to all tokens."""
        return None if index in self.global_blocks else self.window

    def _block(self, *, window: int | None, num_tokens: int) -> BlockShape:
        padded = self.token_grid if window is None else -(-self.token_grid // window) * window
        return BlockShape(
            width=self.width,
            mlp_width=self.mlp_width,
            num_tokens=num_tokens,
            attended_tokens=self._attended_tokens(window=window, num_tokens=num_tokens),
            padding_tokens=0 if window is None else padded**2 - self.token_grid**2,
            is_gated=self.is_gated,
            is_parallel=self.is_parallel,
            qk_norm=self.qk_norm,
            mlp_norm=self.mlp_norm,
            layer_scale=self.layer_scale,
            drops_values=self.drops_values,
            num_gathered=3 if self.halts else 0,
            mixes_channels=self.mixes_channels,
            num_score_heads=self.num_heads if self.position_bias else 0,
            rotary=None if self.rotary is None else "learned" if self.rotary == "mixed" else "fixed",
            bias_flops=2 * padded**2 * 2 * (window or self.token_grid) * self.width if self.position_bias == "decomposed" else 0,
        )

    def _attended_tokens(self, *, window: int | None, num_tokens: int) -> int:
        if self.mixes_channels:
            return self.width // self.num_heads
        return num_tokens if window is None else window**2

    def _merging(self, block: BlockShape, *, wanted: int) -> BlockShape:
        num_patches = block.num_tokens - self.num_prefix
        merged = tokens_merged(num_patches, wanted=wanted)
        flops = matching_flops(num_patches, head_width=self.width // self.num_heads) if merged else 0
        return replace(block, merged_tokens=merged, matching_flops=flops)

    def _pooling_flops(self) -> int:
        if self.pooling != "map":
            return 0
        # One query: its projection and that of the result, keys and values of all tokens, the MLP on one token.
        num_tokens = self.blocks[-1].mlp_tokens
        projections = 2 * (2 + 2 * num_tokens) * self.width**2
        return projections + 4 * num_tokens * self.width + 4 * self.width * self.mlp_width
