"""The sharded state of a running engine as fragments: the `ShardStore` that checkpoints read and write."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from vitscale.checkpoint.fragments import Fragment, Kind
from vitscale.engine.internals import MasterShard

_MOMENTS: tuple[Kind, ...] = ("exp_avg", "exp_avg_sq")


class EngineStore:
    """Master weights, Adam's moments and the moving average of one rank, as fragments of the objective's parameters."""

    def __init__(
        self,
        *,
        zero_stage: int,
        rank: int,
        world_size: int,
        shards: list[MasterShard],
        averages: list[Tensor] | None,
        optimizer: torch.optim.Optimizer,
        refresh: Callable[[], None],
    ) -> None:
        """`averages` holds one flat tensor per shard. `refresh` makes forward read the masters; it is collective."""
        self.zero_stage = zero_stage
        self._rank = rank
        self._world_size = world_size
        self._shards = shards
        self._averages = averages
        self._optimizer = optimizer
        self._refresh = refresh
        _allocate_moments(optimizer, shards)

    def held(self) -> Iterator[Fragment]:
        """Everything on this rank, which a restore fills: the whole model at stage 0, this rank's part at 1 to 3."""
        for index, shard in enumerate(self._shards):
            tensors = self._tensors(index)
            for piece in shard.pieces:
                for kind, flat in tensors.items():
                    values = flat[piece.offset : piece.offset + piece.count]
                    yield Fragment(name=piece.name, kind=kind, shape=piece.shape, start=piece.start, values=values)

    def owned(self) -> Iterator[Fragment]:
        """What this rank writes. At stage 0 an even share of the elements of all tensors, laid end to end: so all ranks write
        equally much, and hardly more pieces come of it than there are tensors."""
        if self.zero_stage > 0:
            yield from self.held()
            return
        total = sum(fragment.values.numel() for fragment in self.held())
        low, high = (total * rank // self._world_size for rank in (self._rank, self._rank + 1))
        position = 0
        for fragment in self.held():
            count = fragment.values.numel()
            begin, end = max(0, low - position), min(count, high - position)
            if begin < end:
                yield replace(fragment, start=fragment.start + begin, values=fragment.values[begin:end])
            position += count

    def optimizer_steps(self) -> int:
        """Adam's step count, which all parameters share: a step is taken for all of them or skipped. Waits for the device."""
        lowest, highest = torch.stack([self._state(index)["step"] for index in range(len(self._shards))]).aminmax()
        # Plain AdamW, at stage 0, leaves out a parameter without gradient.
        assert lowest == highest, f"parameters have taken {int(lowest)} to {int(highest)} steps: one took no part in some step's loss"
        return int(highest)

    def restored(self, *, optimizer_steps: int) -> None:
        """After `held` was filled: set Adam's step count and refresh what forward reads. Collective."""
        for index in range(len(self._shards)):
            self._state(index)["step"].fill_(float(optimizer_steps))
        self._refresh()

    def _tensors(self, index: int) -> dict[Kind, Tensor]:
        state = self._state(index)
        tensors: dict[Kind, Tensor] = {"weight": self._shards[index].values}
        tensors |= {kind: state[kind].view(-1) for kind in _MOMENTS}
        if self._averages is not None:
            tensors["ema"] = self._averages[index]
        return tensors

    def _state(self, index: int) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self._optimizer.state[self._shards[index].state_key]
        return state


def _allocate_moments(optimizer: torch.optim.Optimizer, shards: list[MasterShard]) -> None:
    """Adam allocates its state in the first step; a restore needs it before, and so does a save at step 0."""
    for shard in shards:
        assert not optimizer.state[shard.state_key], "the optimizer has stepped already"
        optimizer.state[shard.state_key] = {
            "step": torch.zeros((), dtype=torch.float32, device=shard.values.device),
            **{kind: torch.zeros_like(shard.state_key.data) for kind in _MOMENTS},
        }
