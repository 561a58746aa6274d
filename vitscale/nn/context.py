"""What the blocks of a transformer know of a batch of tokens beside their values: where they are, and what is drawn for them."""

# B batch, K kept samples, N tokens, H heads, P kept patches

from dataclasses import dataclass, replace

from torch import Tensor

from vitscale.nn.resample import Grid
from vitscale.nn.rope import Rotation


@dataclass(frozen=True, kw_only=True)
class BlockContext:
    """The same for all blocks of one forward pass. It holds no parameters, so it travels by keyword past the engine's hooks."""

    grid: Grid
    """Of the patch tokens, which follow the prefix tokens row by row."""
    num_prefix: int
    """Class, distillation and register tokens."""
    seed_B: Tensor | None = None
    """A 32-bit number for every sample (int64), which all that is random in the model is a function of; None: nothing is random."""
    kept: tuple[Tensor | None, ...] = ()
    """The samples (K,) that run each residual branch, in order; None: all do. Empty where no branch is dropped."""

    rotation: Rotation | None = None
    """By what queries and keys are turned, where no block has a turn of its own."""
    bias_HNN: Tensor | None = None
    """What is added to the attention scores of every block, where they share a bias."""
    patches_BP: Tensor | None = None
    """The patches that patch dropout has left, by their place in the grid; None: all."""
    mask_BN: Tensor | None = None
    """Which tokens are real, where the images of a batch have several numbers of patches; None: all."""

    def of_samples(self, index_K: Tensor) -> "BlockContext":
        """The context of some of the samples."""
        return replace(
            self,
            seed_B=None if self.seed_B is None else self.seed_B[index_K],
            rotation=None if self.rotation is None else self.rotation.of_samples(index_K),
            patches_BP=None if self.patches_BP is None else self.patches_BP[index_K],
            mask_BN=None if self.mask_BN is None else self.mask_BN[index_K],
        )
