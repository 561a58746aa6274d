"""From an objective on the meta device to one with storage, never holding more than one whole parameter above its shards."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitscale.engine.internals import MasterShard, Partitioner

InitialValue = Callable[[str, nn.Parameter, tuple[int, ...]], Tensor]
"""(name in the objective, parameter, its whole shape) -> the whole fp32 CPU tensor that it starts from."""


def materialise(objective: nn.Module, *, zero_stage: int, dtype: torch.dtype, device: torch.device, config: dict[str, Any]) -> None:
    """Give every parameter storage of `dtype` on `device`, in place: zeros, whole at stages 0 to 2, this rank's slice at 3.

    The values come later, from `write_masters`: only the fp32 masters are exact in every precision.
    """
    assert not list(objective.buffers()), "an objective holds no buffers: their values would be lost on the meta device"
    partitioner = Partitioner(config=config, dtype=dtype) if zero_stage == 3 else None
    made: dict[int, nn.Parameter] = {}  # shared parameters stay shared
    for module in objective.modules():
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            assert parameter.is_meta, f"{type(module).__name__}.{key} is not on the meta device"
            if id(parameter) not in made:
                made[id(parameter)] = _with_storage(parameter, dtype=dtype, device=device)
                if partitioner is not None:
                    partitioner.partition(made[id(parameter)])
            module._parameters[key] = made[id(parameter)]


def write_masters(shards: list[MasterShard], *, initial: InitialValue, parameters: dict[str, nn.Parameter]) -> None:
    """Write this rank's part of every initial value into the master weights, one whole parameter at a time."""
    for shard in shards:
        shard.values.zero_()  # the padding too, so that it never holds a NaN that a norm would see
        for piece in shard.pieces:
            whole = initial(piece.name, parameters[piece.name], piece.shape)
            assert whole.shape == piece.shape, f"the initial value of {piece.name} is {tuple(whole.shape)}, not {piece.shape}"
            part = whole.reshape(-1)[piece.start : piece.start + piece.count]
            shard.values[piece.offset : piece.offset + piece.count].copy_(part)


def _with_storage(parameter: nn.Parameter, *, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    result = nn.Parameter(torch.zeros(parameter.shape, dtype=dtype, device=device), requires_grad=parameter.requires_grad)
    result.__dict__.update(parameter.__dict__)  # its init recipe
    return result
