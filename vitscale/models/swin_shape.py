"""The sizes of a Swin Transformer, stage by stage, and what its forward pass costs; known before anything is built."""

from dataclasses import dataclass

from vitscale.models.base import BlockShape


@dataclass(frozen=True, kw_only=True)
class StageShape:
    """The sizes of the blocks of one stage. `grid` is the side of its square map, `window` and `shift` are in tokens of it."""

    width: int
    mlp_width: int
    depth: int
    num_heads: int
    grid: int
    window: int
    shift: int
    by_cosines: bool
    unit_window: int
    """For version 2: the window in whose units the position bias sees offsets."""

    @property
    def block(self) -> BlockShape:
        """What one block costs."""
        padded = -(-self.grid // self.window) * self.window
        return BlockShape(
            width=self.width,
            mlp_width=self.mlp_width,
            num_tokens=self.grid**2,
            attended_tokens=self.window**2,
            padding_tokens=padded**2 - self.grid**2,
            num_score_heads=self.num_heads,
            by_cosines=self.by_cosines,
        )


@dataclass(frozen=True, kw_only=True)
class SwinShape:
    """The sizes that decide a Swin's parameters, FLOPs and memory. Lengths of images and patches are in pixels."""

    stages: tuple[StageShape, ...]
    patch_size: int
    image_size: int
    num_channels: int
    class_token: bool = False
    is_distilled: bool = False
    stem: None = None

    @property
    def width(self) -> int:
        """Width of the last stage, and so of the features."""
        return self.stages[-1].width

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Attention heads of each stage."""
        return tuple(stage.num_heads for stage in self.stages)

    @property
    def kernel_side(self) -> int:
        """Side of a patch where it is cut: pixels."""
        return self.patch_size

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size

    @property
    def blocks(self) -> tuple[BlockShape, ...]:
        """Every block, stage by stage."""
        return tuple(block for stage in self.stages for block in stage.depth * (stage.block,))

    @property
    def forward_flops(self) -> int:
        """FLOPs of the forward pass of one image, without a head.

        SwinV2's networks for the position bias are left out: they run once for a batch, not for each image.
        """
        patch_embed = 2 * self.grid**2 * self.num_channels * self.patch_size**2 * self.stages[0].width
        merges = sum(2 * stage.grid**2 * 2 * stage.width * stage.width for stage in self.stages[1:])
        return sum(block.forward_flops for block in self.blocks) + patch_embed + merges
