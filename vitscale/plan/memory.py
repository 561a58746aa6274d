"""Bytes that one rank needs: sharded model states, and activations by recompute policy.

Counting follows the ZeRO papers (Rajbhandari et al. 2020; Ren et al. 2021 for offload) for the states, and the tensors that
autograd keeps for a pre-norm block with fused attention for the activations.
"""

from dataclasses import dataclass

from vitscale.plan.cluster import Device
from vitscale.run_config import Precision, RecomputeMode


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What memory depends on. `num_tokens` counts patches and class token; `num_parameters` the whole objective."""

    num_parameters: int
    depth: int
    width: int
    mlp_width: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Predicted peak bytes of one rank, by what holds them: on its device, and `host` beside it for what is offloaded from there."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    host: int = 0

    @property
    def total(self) -> int:
        """All of it that lies on the device."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(
    size: ModelSize,
    *,
    world_size: int,
    zero_stage: int,
    precision: Precision,
    micro_batch: int,
    recompute: RecomputeMode,
    recompute_every: int,
    ema: bool,
    offload_optimizer: bool,
    device: Device,
) -> MemoryEstimate:
    """Predict one rank's memory. Fragmentation, buckets and the process itself are left to the caller's reserve."""
    item_bytes = 4 if precision == "fp32" else 2
    whole, shard = size.num_parameters, -(-size.num_parameters // world_size)
    # Stage 3 keeps its own shard and, while a block runs, that block and the prefetched next one.
    block_parameters = size.width * (4 * size.width + 2 * size.mlp_width)
    weights = item_bytes * (shard + 2 * block_parameters if zero_stage == 3 else whole)
    gradients = item_bytes * (shard if zero_stage >= 2 else whole)
    # Stage 0 in fp32 steps the weights themselves: two moments. Otherwise a separate fp32 master comes on top.
    optimizer = (12 if zero_stage >= 1 else 8) * (shard if zero_stage >= 1 else whole)
    if ema:
        optimizer += 4 * (shard if zero_stage >= 1 else whole)
    host = 0
    if offload_optimizer:
        # Beside its states the optimizer has its shard of the gradients, in fp32 and as they arrive; from stage 2 on the
        # device keeps none of it.
        optimizer += (4 + item_bytes) * shard
        gradients = 0 if zero_stage >= 2 else gradients
        if device == "cuda":
            optimizer, host = 0, optimizer
    activations = item_bytes * micro_batch * _activation_elements(size, recompute=recompute, every=recompute_every)
    return MemoryEstimate(weights=weights, gradients=gradients, optimizer=optimizer, activations=activations, host=host)


def save_copy_bytes(size: ModelSize, *, world_size: int, ema: bool) -> int:
    """Host memory of one rank for a save in the background: a copy of all that it writes, fp32 masters, two moments, average."""
    return (16 if ema else 12) * -(-size.num_parameters // world_size)


def _activation_elements(size: ModelSize, *, recompute: RecomputeMode, every: int) -> int:
    """Elements kept for backward per image, in units of N x D: per block 8 + 2 r kept whole (r = MLP ratio), 6 + r when
    only matrix products are kept, 1 when only the block's input is; one block is live at a time in either case."""
    ratio = size.mlp_width / size.width
    whole = 8 + 2 * ratio
    kept = {"none": whole, "selective": 6 + ratio, "full": 1.0}[recompute]
    num_recomputed = 0 if recompute == "none" else -(-size.depth // every)
    units = num_recomputed * kept + (size.depth - num_recomputed) * whole + (whole if num_recomputed else 0)
    embedding_and_norms = 3
    return round((units + embedding_and_norms) * size.num_tokens * size.width)
