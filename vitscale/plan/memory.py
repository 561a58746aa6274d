"""Bytes that one rank needs: sharded model states, and activations by recompute policy.

Counting follows the ZeRO papers (Rajbhandari et al. 2020; Ren et al. 2021 for offload) for the states, and the tensors that
autograd keeps for a pre-norm block with fused attention for the activations.
"""

from dataclasses import dataclass

from vitscale.models import BlockShape, PooledInput
from vitscale.nn.stem import StemShape, UnitShape
from vitscale.plan.cluster import Device
from vitscale.run_config import Precision, RecomputeMode


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What memory depends on: the parameters of the whole objective, and its blocks in the order in which they run."""

    num_parameters: int
    blocks: tuple[BlockShape, ...]
    embedding_norm: bool = False
    """Whether tokens are normalised before the first block."""
    stem: StemShape | None = None


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
    block_parameters = max(block.num_weights for block in size.blocks)
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
    if size.stem is not None:
        activations += _stem_bytes(size.stem, micro_batch=micro_batch, item_bytes=item_bytes, recompute=recompute)
    return MemoryEstimate(weights=weights, gradients=gradients, optimizer=optimizer, activations=activations, host=host)


def save_copy_bytes(size: ModelSize, *, world_size: int, ema: bool) -> int:
    """Host memory of one rank for a save in the background: a copy of all that it writes, fp32 masters, two moments, average."""
    return (16 if ema else 12) * -(-size.num_parameters // world_size)


def _activation_elements(size: ModelSize, *, recompute: RecomputeMode, every: int) -> int:
    """Elements kept for backward per image: those of every block, of the one that is live while it is recomputed, and of
    the embedding and the norms outside of the blocks."""
    total = sum(_block_elements(block, "none" if index % every else recompute) for index, block in enumerate(size.blocks))
    if recompute != "none":
        total += max(_block_elements(block, "none") for block in size.blocks[::every])
    embedding_and_norms = (4 if size.embedding_norm else 3) * max(block.num_tokens * block.width for block in size.blocks)
    return round(total + embedding_and_norms)


def _stem_bytes(stem: StemShape, *, micro_batch: int, item_bytes: int, recompute: RecomputeMode) -> int:
    """What a stem keeps for backward: its units, the one that is live while it is recomputed, and its features, cut into patches
    and, where they are not recomputed, as they were."""
    image = (2 if recompute == "none" else 1) * item_bytes * stem.result_elements
    image += sum(_unit_bytes(unit, item_bytes=item_bytes, recompute=recompute) for unit in stem.units)
    # Standardised kernels are computed in fp32: centred, and divided.
    kernels = [2 * 4 * unit.standardised_elements for unit in stem.units]
    if recompute == "none":
        return micro_batch * image + sum(kernels)
    live = max(_unit_bytes(unit, item_bytes=item_bytes, recompute="none") for unit in stem.units)
    return micro_batch * (image + live) + max(kernels)


def _unit_bytes(unit: UnitShape, *, item_bytes: int, recompute: RecomputeMode) -> int:
    elements = unit.input_elements
    if recompute != "full":
        elements += unit.convolved_elements
    if recompute != "none":
        return item_bytes * elements
    return item_bytes * (elements + unit.activated_elements) + unit.index_bytes


def _block_elements(block: BlockShape, recompute: RecomputeMode) -> float:
    """In units of N x D of a plain block: 8 + 2 r kept whole (r = MLP ratio), 6 + r when only matrix products are kept, 1 when
    only the block's input is; but for the last, the scores of attention as well where no fused kernel computes it."""
    pooling = _pooling_elements(block.pooled_input, block=block, recompute=recompute) if block.pooled_input else 0
    if recompute == "full":
        return block.num_tokens * block.width + pooling
    if block.mixes_channels:
        return _mixing_block_elements(block, recompute) + _masks(block, recompute)
    # What attention sees: with windows, the tokens that fill them up as well. Its queries, keys, values and result.
    attention = 4 * (block.num_tokens + block.padding_tokens) * block.width
    hidden = block.mlp_tokens * block.mlp_width
    is_cut = block.attended_tokens < block.num_tokens and not block.lies_in_windows
    if is_cut and not block.num_score_heads and recompute == "none":
        # What the fused kernels give, before the windows are joined again.
        attention += (block.num_tokens + block.padding_tokens) * block.width
    scores = block.num_score_heads * (block.num_tokens + block.padding_tokens) * block.attended_tokens
    if recompute == "selective":
        products = attention + (2 if block.is_gated else 1) * hidden
        return (block.num_tokens + block.mlp_tokens) * block.width + products + scores + pooling
    # Each norm keeps what goes in and what comes out; each layer scale what goes in.
    kept = (3 if block.layer_scale else 2) * (block.num_tokens + (0 if block.is_parallel else block.mlp_tokens))
    if block.merged_tokens:
        kept += block.num_tokens  # what merging takes its sums from
    kept += block.num_gathered * block.num_tokens
    attention += _copies_of_queries_and_keys(block) * (block.num_tokens + block.padding_tokens) * block.width
    # Plain: before and after GELU. Gated: gate, value, SiLU of the gate, product.
    hidden *= (4 if block.is_gated else 2) + int(block.mlp_norm)
    return kept * block.width + attention + hidden + scores + pooling + _masks(block, recompute)


def _masks(block: BlockShape, recompute: RecomputeMode) -> int:
    """What the dropped values are multiplied with: after attention, inside the MLP and after it. They are made anew in recomputation."""
    if not block.drops_values or recompute != "none":
        return 0
    return block.num_tokens * block.width + block.mlp_tokens * (block.mlp_width + block.width)


def _pooling_elements(pooled: PooledInput, *, block: BlockShape, recompute: RecomputeMode) -> int:
    """What a block that pools keeps beyond a plain one of the tokens and width that it makes."""
    wider, output = pooled.num_tokens * block.width, block.num_tokens * block.width
    block_input = pooled.num_tokens * pooled.width
    if recompute == "full":
        return block_input - output
    # Queries, keys and values of all that goes in, and what goes past the attention.
    projected = 3 * (wider - output) + (wider if pooled.projects else 0)
    if recompute == "selective":
        return projected
    # The norm's input and result, the pooled queries, and the largest of what goes past.
    largest = output if pooled.projects else block.num_tokens * pooled.width
    return projected + 2 * (block_input - output) + output + largest


def _mixing_block_elements(block: BlockShape, recompute: RecomputeMode) -> float:
    """The same of a block whose attention is between channels: three branches of the same tokens, scores and weights of every channel
    for those of its head, and queries, keys and values once more, as the products take them."""
    tokens, scores = block.num_tokens * block.width, block.width * block.attended_tokens
    hidden = block.num_tokens * block.mlp_width
    if recompute == "selective":
        return (2 + 4 + 2) * tokens + scores + (2 if block.is_gated else 1) * hidden
    branches = 3 * (3 if block.layer_scale else 2) * tokens
    attention = (3 + 3 + 1) * tokens + 2 * scores
    convolutions = 3 * tokens
    return branches + attention + convolutions + hidden * ((4 if block.is_gated else 2) + int(block.mlp_norm))


def _copies_of_queries_and_keys(block: BlockShape) -> int:
    """What is kept of them beside the projection: as attention takes them, as they are multiplied with learned turns, themselves
    and with their pairs swapped, and, where a bias is made out of the queries, those two times."""
    copies = 2 if block.qk_norm or block.rotary else 0
    if block.rotary == "learned":
        copies += 4 if block.qk_norm else 2
    copies += 4 if block.by_cosines else 0  # as they were, and the queries before they are scaled
    return copies + (2 if block.bias_flops else 0)
