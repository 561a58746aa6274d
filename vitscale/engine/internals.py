"""Every private attribute of DeepSpeed that we touch, in one file, for the one version that it was read in."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor, nn

_VERSION = "0.19."

# What ZeRO hangs on a parameter that refers to storage or to the engine.
_ZERO_ATTRIBUTES = ("_z3_optimizer", "_zero_optimizer", "_hp_mapping", "ds_tensor", "all_gather", "partition", "partition_gradients")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Elements [start, start + count) of the flattened parameter `name`, at `offset` in the flat tensor that holds them."""

    name: str
    shape: tuple[int, ...]
    start: int
    count: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class MasterShard:
    """One flat fp32 tensor of master weights on this rank, the key of its optimizer state, and what lies where in it.

    Padding between and behind the pieces belongs to nobody.
    """

    values: Tensor
    state_key: Tensor
    pieces: tuple[Piece, ...]


def check_version() -> None:
    """Fail loudly where DeepSpeed is not the version whose internals are known here."""
    assert deepspeed.__version__.startswith(_VERSION), (
        f"deepspeed {deepspeed.__version__} is installed, but the sharded state is read from private attributes of {_VERSION}x:"
        f' install "deepspeed=={_VERSION}*", or mend vitscale/engine/internals.py and run tests/engine'
    )


class Partitioner:
    """Turns whole parameters into ZeRO-3 ones, each at once cut into a slice per rank."""

    def __init__(self, *, config: dict[str, Any], dtype: torch.dtype) -> None:
        self._zero_init = deepspeed.zero.Init(config_dict_or_path=config, mem_efficient_linear=False, dtype=dtype)

    def partition(self, parameter: nn.Parameter) -> None:
        """Keep this rank's slice of `parameter` only. Unlike zero.Init's own path it broadcasts nothing."""
        self._zero_init._convert_to_deepspeed_param(parameter)
        parameter.partition()  # type: ignore[attr-defined]


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer: ZeRO wraps it, stage 0 in fp32 does not."""
    optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer


def master_shards(engine: Any, *, names: dict[nn.Parameter, str], zero_stage: int) -> list[MasterShard]:
    """All fp32 master weights on this rank. At stage 0 every rank holds everything, else each its own part."""
    build = (_replicated, _flat_partitions, _flat_partitions, _sub_groups)[zero_stage]
    shards = list(build(engine, names))
    assert all(shard.values.dtype == torch.float32 for shard in shards), "master weights are not fp32"
    return shards


def forward_shards(engine: Any, *, zero_stage: int) -> list[Tensor]:
    """What was made of the masters for forward to read, in the precision of the run, laid out like `master_shards`; stages 1 to 3."""
    zero = engine.optimizer
    if zero_stage == 3:
        return [low.data for low in zero.fp16_partitioned_groups_flat]
    ranks = [group.rank() for group in zero.real_dp_process_group]
    return [parts[rank].data for parts, rank in zip(zero.parallel_partitioned_bit16_groups, ranks, strict=True)]


def whole_parameters(names: dict[nn.Parameter, str], *, zero_stage: int) -> dict[str, Tensor]:
    """The parameters that this rank holds whole, flat: all of them but at stage 3, where it is those gathered now."""
    return {name: p.data.view(-1) for p, name in names.items() if zero_stage < 3 or _is_gathered(p)}


def refresh_forward_weights(engine: Any, *, zero_stage: int) -> None:
    """Make what forward reads equal to the master weights, after these were written. Collective."""
    if zero_stage in (1, 2):
        _refresh_flat_partitions(engine.optimizer)
    elif zero_stage == 3:
        _refresh_stage_3(engine.optimizer)


def global_grad_norm(engine: Any, *, device: torch.device) -> Tensor:
    """The norm of the last step's gradient before clipping, stages 1 to 3; infinite when the gradient was not finite."""
    norm = engine.get_global_grad_norm()
    return torch.as_tensor(norm, dtype=torch.float32, device=device)


def skipped_step(engine: Any) -> bool:
    """Whether the last step, at stages 1 to 3, was not taken because its gradient was not finite."""
    is_skipped: bool = engine.optimizer.overflow
    return is_skipped


def destroy(engine: Any) -> None:
    """Free an engine, so that another can live in this process. Its module is empty afterwards."""
    root, zero = engine.module, engine.optimizer
    engine.destroy()
    # ZeRO-3 keeps every root module it ever saw on a global stack.
    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [module for module in stack if module is not root]
    # Hooks that torch holds out of the collector's sight keep parameters and through them the engine alive, so everything
    # large is let go of by name.
    for parameter in root.parameters():
        for name in _ZERO_ATTRIBUTES:
            parameter.__dict__.pop(name, None)
        parameter.grad = None
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    inner_optimizer(engine).state.clear()
    for owner in (getattr(zero, "parameter_offload", None), zero, engine):
        if owner is not None:
            owner.__dict__.clear()
    gc.collect()


def _is_gathered(parameter: Any) -> bool:
    return bool(parameter.ds_status == ZeroParamStatus.AVAILABLE)


def _replicated(engine: Any, names: dict[nn.Parameter, str]) -> Iterator[MasterShard]:
    for parameter in engine.module.parameters():
        piece = Piece(name=names[parameter], shape=tuple(parameter.shape), start=0, count=parameter.numel(), offset=0)
        yield MasterShard(values=parameter.data.view(-1), state_key=parameter, pieces=(piece,))


def _flat_partitions(engine: Any, names: dict[nn.Parameter, str]) -> Iterator[MasterShard]:
    """Stages 1 and 2: the parameters of a group lie one after another in a flat tensor, of which a rank masters one part."""
    zero = engine.optimizer
    for index, master in enumerate(zero.single_partition_of_fp32_groups):
        size = zero.partition_size[index]
        begin = zero.real_dp_process_group[index].rank() * size
        pieces = []
        for parameter, position in zip(zero.round_robin_bit16_groups[index], zero.round_robin_bit16_offsets[index], strict=True):
            low, high = max(position, begin), min(position + parameter.numel(), begin + size)
            if low < high:
                pieces.append(
                    Piece(name=names[parameter], shape=tuple(parameter.shape), start=low - position, count=high - low, offset=low - begin)
                )
        yield MasterShard(values=master.data, state_key=master, pieces=tuple(pieces))


def _sub_groups(engine: Any, names: dict[nn.Parameter, str]) -> Iterator[MasterShard]:
    """Stage 3: every parameter is cut into equal padded slices, one a rank; a sub-group is the rank's slices end to end."""
    zero = engine.optimizer
    for parameters, master in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        pieces, offset = [], 0
        for parameter in parameters:
            width = parameter.partition_numel()
            start = parameter.ds_zero_partition_rank * width
            count = max(0, min(parameter.ds_numel - start, width))
            if count:
                pieces.append(Piece(name=names[parameter], shape=tuple(parameter.ds_shape), start=start, count=count, offset=offset))
            offset += width
        assert offset == master.numel(), f"a ZeRO-3 sub-group holds {master.numel()} elements, its slices {offset}"
        yield MasterShard(values=master.data, state_key=master, pieces=tuple(pieces))


def _refresh_flat_partitions(zero: Any) -> None:
    """What DeepSpeed's update_lp_params does, bit for bit, in place: gathering takes the size of a whole group beside it with gloo."""
    groups = zero.parallel_partitioned_bit16_groups, zero.single_partition_of_fp32_groups, zero.real_dp_process_group
    for parts, master, group in zip(*groups, strict=True):
        parts[group.rank()].data.copy_(master.data)
        for rank, part in enumerate(parts):
            torch.distributed.broadcast(part.data, group_src=rank, group=group)


def _refresh_stage_3(zero: Any) -> None:
    for low, master in zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True):
        low.data.copy_(master.data)
    # Whatever is gathered now was gathered from the old values: persistent parameters, and those kept for reuse.
    gathered = [p for group in zero.fp16_groups for p in group if _is_gathered(p)]
    zero._partition_all_parameters()
    stale = [p for p in zero.persistent_parameters if _is_gathered(p)]
    if stale:
        stale[0].partition(stale)
    again = [p for p in gathered if p.ds_persist]
    if again:
        again[0].all_gather(again)
    # On a GPU the next gathering runs in a stream of its own, which does not wait for the copies above.
    get_accelerator().synchronize()
