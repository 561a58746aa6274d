"""A vision transformer whose tokens halt at different depths: it spends less on images that are easy."""

# B batch, N tokens, T tokens that go on, D width

from torch import Tensor, nn

from vitscale.models.base import Features
from vitscale.models.vit import ViT
from vitscale.models.vit_settings import ViTSettings
from vitscale.nn.context import BlockContext
from vitscale.nn.halting import Halting, HaltingBlock


class HaltingViT(ViT):
    """A `ViT` with the same parameters. Its tokens are the means over the blocks that each went through; those that have halted take no
    part in any further product of matrices, in training and in evaluation."""

    def __init__(self, config: ViTSettings) -> None:
        super().__init__(config)
        assert config.halting is not None, "this class is built for halting"
        self.halting = config.halting

    def _new_block(self, config: ViTSettings, *, index: int) -> nn.Module:
        return HaltingBlock(config.block_spec(index), index=index)

    def _encode(self, x_BND: Tensor, *, context: BlockContext) -> Features:  # noqa: ARG002  (tokens need no places)
        halting = Halting(self.halting, x_BND, num_blocks=len(self.blocks))
        x_1TD = x_BND.flatten(0, 1).unsqueeze(0)
        for index, block in enumerate(self.blocks):
            x_1TD = self.block_runner(index, block, x_1TD, num_tokens=halting.num_tokens, packing=halting.packing)
            x_1TD = halting.after_block(x_1TD)
        halted = halting.result()
        return self._features(halted.x_BND)._replace(loss_B=halted.loss_B, tokens_BL=halted.tokens_BL)
