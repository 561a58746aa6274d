"""What the blocks of a transformer know of a batch of tokens beside their values: where they are, and what is drawn for them."""

# B batch, K kept samples, N tokens

from dataclasses import dataclass, replace

from torch import Tensor

from vitscale.nn.resample import Grid


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

    def of_samples(self, index_K: Tensor) -> "BlockContext":
        """The context of some of the samples."""
        return replace(self, seed_B=None if self.seed_B is None else self.seed_B[index_K])
