"""A vision transformer on images of mixed resolutions and aspect ratios, as sequences of patches."""

# B batch, C channels, H height, W width, N tokens, D width

from torch import Tensor

from vitscale.models.base import Draws, Features
from vitscale.models.vit import ViT
from vitscale.nn.context import BlockContext
from vitscale.nn.counter_hash import SEED_KEY
from vitscale.nn.grid_batch import GridBatch
from vitscale.nn.input_form import PATCH_GRID_KEY
from vitscale.nn.resample import Grid
from vitscale.nn.rope import Rotation
from vitscale.nn.stochastic_depth import kept_samples


class NaFlexViT(ViT):
    """A `ViT` with the same parameters. An image in a mixed batch has the features that it has by itself: positions are those of its own
    grid, attention and pooling see its own patches. `tokens_BND` holds also the tokens that fill its sequence up."""

    def forward(self, image_BCHW: Tensor, *, draws: Draws | None = None) -> Features:
        """Sequences (nn/input_form.py) whose grids are in `draws`; without grids there, images of one size as `ViT` takes them."""
        if draws is None or PATCH_GRID_KEY not in draws:
            return super().forward(image_BCHW, draws=draws)
        seed_B = draws.get(SEED_KEY)
        patches_BND = self._cut(image_BCHW, patch_size=self.patch_size)
        grids = GridBatch(draws[PATCH_GRID_KEY], length=patches_BND.shape[1])
        x_BND = self._embed(patches_BND, grid=grids, seed_B=seed_B, patches_BP=None)
        context = BlockContext(
            grid=Grid(rows=grids.length, columns=1),
            num_prefix=self.num_prefix,
            seed_B=seed_B,
            kept=() if seed_B is None else kept_samples(seed_B, rates=self.drop_rates),
            rotation=self._rotations(x_BND, grids=grids),
            mask_BN=grids.mask(num_prefix=self.num_prefix),
        )
        return self._encode(x_BND, context=context)

    def _encode(self, x_BND: Tensor, *, context: BlockContext) -> Features:
        for index, block in enumerate(self.blocks):
            x_BND = self.block_runner(index, block, x_BND, context=context)
        # A token that fills a sequence up stands for no patch. In fp32: bf16 cannot count beyond 256.
        return self._features(x_BND, sizes_BN=None if context.mask_BN is None else context.mask_BN.float())

    def _rotations(self, like: Tensor, *, grids: GridBatch) -> Rotation | None:
        """The turns of the tokens of each image."""
        rope = self.rope
        if rope is None:
            return None

        def turns(grid: Grid) -> Rotation:
            return rope.rotation(like, grid=grid, num_prefix=self.num_prefix, seed_B=None)

        cos_BNK = grids.table(lambda grid: turns(grid).cos.squeeze(0), num_prefix=self.num_prefix)
        sin_BNK = grids.table(lambda grid: turns(grid).sin.squeeze(0), num_prefix=self.num_prefix)
        return Rotation(cos_BNK.unsqueeze(1), sin_BNK.unsqueeze(1), rope.pairing)
