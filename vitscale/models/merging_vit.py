"""A vision transformer whose blocks merge patches."""

# B batch, N tokens, D width

from torch import Tensor, nn

from vitscale.models.base import Features
from vitscale.models.vit import ViT
from vitscale.models.vit_settings import ViTSettings
from vitscale.nn.context import BlockContext
from vitscale.nn.token_merging import MergingBlock


class MergingViT(ViT):
    """A `ViT` with the same parameters, in whose `tokens_BND` one token stands for several patches; pooling counts it as many."""

    def _new_block(self, config: ViTSettings, *, index: int) -> nn.Module:
        assert config.token_merging is not None, "this class is built for merging"
        return MergingBlock(
            config.block_spec(index),
            index=index,
            num_merged=config.token_merging.wanted(depth=config.shape.depth)[index],
            is_proportional=config.token_merging.proportional_attention,
        )

    def _encode(self, x_BND: Tensor, *, context: BlockContext) -> Features:
        sizes_BN: Tensor | None = None
        for index, block in enumerate(self.blocks):
            x_BND, sizes_BN = self.block_runner(index, block, x_BND, context=context, sizes_BN=sizes_BN)
        return self._features(x_BND, sizes_BN=sizes_BN)
