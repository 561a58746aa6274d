"""What a checkpoint is made of: flat pieces of named fp32 tensors, and the store that owns them in a running engine."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Kind = Literal["weight", "exp_avg", "exp_avg_sq", "ema"]
"""Which tensor of a parameter: the fp32 master weight, Adam's first or second moment, the moving average of the weight."""

ELEMENT_BYTES = 4
"""All of them are fp32."""


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """The elements [start, start + values.numel()) of one flattened fp32 tensor of shape `shape`.

    `values` is a flat fp32 view into live memory: reading it saves, writing into it restores.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    start: int
    values: Tensor


class ShardStore(Protocol):
    """The sharded state of a run as fragments. The engine implements it; checkpointing knows nothing else of the engine."""

    zero_stage: int

    def owned(self) -> Iterator[Fragment]:
        """What this rank writes: over all ranks the pieces tile every tensor exactly once."""

    def held(self) -> Iterator[Fragment]:
        """What this rank must fill on a restore: equal to `owned` where state is sharded, everything where it is replicated."""

    def optimizer_steps(self) -> int:
        """Adam's step count (equal for all parameters)."""

    def restored(self, *, optimizer_steps: int) -> None:
        """Called on every rank after `held` pieces were written: sets Adam's step count and refreshes the copies that
        forward reads. Collective."""
