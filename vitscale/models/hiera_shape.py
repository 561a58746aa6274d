"""The sizes of a Hiera, block by block, and what its forward pass costs; known before anything is built."""

from dataclasses import dataclass

from vitscale.models.base import BlockShape, PooledInput
from vitscale.nn.dropout import num_kept_patches
from vitscale.nn.unit_attention import POOLED_TOKENS


@dataclass(frozen=True, kw_only=True)
class HieraBlockSpec:
    """What one block is made of. `unit_tokens` are the tokens of a mask unit that come out of it."""

    input_width: int
    width: int
    mlp_width: int
    num_heads: int
    unit_tokens: int
    within_units: bool

    @property
    def pools(self) -> bool:
        """Whether it makes one token of four, and doubles the width."""
        return self.input_width != self.width


@dataclass(frozen=True, kw_only=True)
class HieraShape:
    """The sizes that decide a Hiera's parameters, FLOPs and memory. Lengths of images and patches are in pixels."""

    specs: tuple[HieraBlockSpec, ...]
    num_poolings: int
    patch_stride: int
    image_size: int
    num_channels: int
    projects: bool
    layer_scale: bool
    patch_dropout: float
    class_token: bool = False
    is_distilled: bool = False
    stem: None = None

    @property
    def width(self) -> int:
        """Width of the last stage, and so of the features."""
        return self.specs[-1].width

    @property
    def num_heads(self) -> int:
        """Attention heads of the first stage."""
        return self.specs[0].num_heads

    @property
    def unit_side(self) -> int:
        """Tokens of the first map along a side of a mask unit."""
        side: int = 2**self.num_poolings
        return side

    @property
    def patch_size(self) -> int:
        """Pixels along a side of a mask unit: images consist of whole ones."""
        return self.patch_stride * self.unit_side

    @property
    def kernel_side(self) -> int:
        """Side of a patch where it is cut: pixels. Patches overlap, so that a stride of 4 goes with a side of 7."""
        return 2 * self.patch_stride - 1

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_stride

    @property
    def blocks(self) -> tuple[BlockShape, ...]:
        """Every block, stage by stage."""
        return tuple(self._block(spec) for spec in self.specs)

    @property
    def forward_flops(self) -> int:
        """FLOPs of the forward pass of one image, without a head."""
        patch_embed = 2 * self.grid**2 * self.num_channels * self.kernel_side**2 * self.specs[0].width
        return sum(block.forward_flops for block in self.blocks) + patch_embed

    def _block(self, spec: HieraBlockSpec) -> BlockShape:
        num_units = num_kept_patches((self.image_size // self.patch_size) ** 2, rate=self.patch_dropout)
        input_tokens = spec.unit_tokens * (POOLED_TOKENS if spec.pools else 1)
        pooled = PooledInput(width=spec.input_width, num_tokens=num_units * input_tokens, projects=self.projects)
        return BlockShape(
            width=spec.width,
            mlp_width=spec.mlp_width,
            num_tokens=num_units * spec.unit_tokens,
            attended_tokens=input_tokens if spec.within_units else num_units * input_tokens,
            lies_in_windows=True,
            pooled_input=pooled if spec.pools else None,
            layer_scale=self.layer_scale,
        )
