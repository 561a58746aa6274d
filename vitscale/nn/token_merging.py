"""Token merging (ToMe; Bolya et al. 2023): between attention and MLP the most alike patches become one, and fewer go on."""

# B batch, N tokens, P patches, S sources, T targets, U unmerged sources, R merged sources, M tokens left, D width, H heads, K head width

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vitscale.config import Config
from vitscale.nn.attention import Attention
from vitscale.nn.block import Block, BlockSpec, scaled
from vitscale.nn.context import BlockContext
from vitscale.nn.pooling import log_sizes
from vitscale.nn.stochastic_depth import add_branch, add_result


class TokenMergingConfig(Config):
    """Patches that are merged in every block. There are no parameters in it: a model trained without it can be evaluated with it."""

    per_block: int = Field(ge=0)
    """How many tokens fewer each block leaves, on average over the blocks; at most half of the patches that reach it."""
    schedule: Literal["constant", "decreasing"] = "constant"
    """constant: as many in every block. decreasing: twice as many in the first, and linearly fewer down to none in the last."""
    proportional_attention: bool = True
    """Whether a token draws attention by the number of patches that it stands for. The paper's authors have it for models that were
    trained without merging, but not in training and not for masked autoencoders."""

    def wanted(self, *, depth: int) -> tuple[int, ...]:
        """How many tokens each block is to merge away."""
        if self.schedule == "constant":
            return (self.per_block,) * depth
        last = max(1, depth - 1)
        return tuple(2 * self.per_block * (last - index) // last for index in range(depth))


class Merged(NamedTuple):
    """Tokens (B, N, D), and how many patches each of them stands for (B, N); None where all stand for one."""

    # A tuple because DeepSpeed's ZeRO-3 hooks look for tensors in tuples, lists and dicts only.
    x_BND: Tensor
    sizes_BN: Tensor | None


class Matching(NamedTuple):
    """Which sources are merged (B, R), into which targets (B, R), and which are not (B, U)."""

    unmerged_BU: Tensor
    source_BR: Tensor
    target_BR: Tensor


class MergingBlock(Block):
    """A block that leaves `num_merged` tokens fewer for its MLP and for the next block.

    Under stochastic depth its attention runs on all samples, for matching needs their keys; those that drop it do not add it.
    """

    def __init__(self, spec: BlockSpec, *, index: int, num_merged: int, is_proportional: bool) -> None:
        super().__init__(spec, index=index)
        self.num_merged = num_merged
        self.is_proportional = is_proportional

    def forward(self, x_BND: Tensor, *, context: BlockContext, sizes_BN: Tensor | None = None) -> Merged:  # type: ignore[override]
        """(B, N, D) and the sizes of the tokens (B, N) to (B, M, D) and (B, M)."""
        assert isinstance(self.attn, Attention), "matching compares the keys of tokens"
        first = self.num_branches * self.index
        y_BND, key_BNK = attend_in_proportion(self.attn, self.norm1(x_BND), sizes_BN=sizes_BN if self.is_proportional else None)
        y_BND = scaled(self.attention_dropout(y_BND, seed_B=context.seed_B), by=self.ls1)
        x_BND = add_result(x_BND, y_BND, context=context, index=first, rate=self.drop_rate)
        matching = match_patches(key_BNK, num_prefix=context.num_prefix, num_merged=self.num_merged)
        if matching is not None:
            x_BND, sizes_BN = merge_tokens(x_BND, sizes_BN, matching=matching, num_prefix=context.num_prefix)
        x_BND = add_branch(x_BND, self._feed_forward, context=context, index=first + 1, rate=self.drop_rate)
        return Merged(x_BND, sizes_BN)


def attend_in_proportion(attention: Attention, x_BND: Tensor, *, sizes_BN: Tensor | None) -> tuple[Tensor, Tensor]:
    """What attention makes of the tokens (B, N, D), each counted as often as its size says, and the mean of its keys over the heads
    (B, N, K)."""
    q_BNHK, k_BNHK, v_BNHK = attention.heads(x_BND)
    mixed_BHNK = F.scaled_dot_product_attention(
        q_BNHK.transpose(1, 2), k_BNHK.transpose(1, 2), v_BNHK.transpose(1, 2), attn_mask=log_sizes(sizes_BN, like=x_BND)
    )
    projected_BND: Tensor = attention.proj(mixed_BHNK.transpose(1, 2).flatten(2))
    return projected_BND, k_BNHK.detach().mean(dim=2)


def tokens_merged(num_patches: int, *, wanted: int) -> int:
    """How many of the patches can be merged away at once: no more than every other one."""
    return min(wanted, num_patches // 2)


def match_patches(key_BNK: Tensor, *, num_prefix: int, num_merged: int) -> Matching | None:
    """Bipartite soft matching: patches are sources and targets in turn, each source's best match is the target whose key has the
    smallest angle to its own, and the pairs with the smallest angles of all are merged. None where there are none.

    Prefix tokens take no part. Of pairs that are equally alike the one of the earlier source comes first. Sources that stay keep
    their order; only without prefix tokens they are left in that of their similarity, as in the code of the paper's authors
    (facebookresearch/ToMe, tome/merge.py), where this decides what the next block compares.
    """
    count = tokens_merged(key_BNK.shape[1] - num_prefix, wanted=num_merged)
    if not count:
        return None
    with torch.no_grad():
        source_BSK, target_BTK = _in_turn(F.normalize(key_BNK.float(), dim=-1), num_prefix=num_prefix)
        similarity_BS, target_BS = (source_BSK @ target_BTK.transpose(1, 2)).max(dim=-1)
        order_BS = similarity_BS.argsort(dim=-1, descending=True, stable=True)
        source_BR, unmerged_BU = order_BS[:, :count], order_BS[:, count:]
        unmerged_BU = unmerged_BU.sort(dim=-1).values if num_prefix else unmerged_BU
        return Matching(unmerged_BU, source_BR, target_BS.gather(1, source_BR))


def matching_flops(num_patches: int, *, head_width: int) -> int:
    """FLOPs of the comparison of all sources with all targets."""
    return 2 * (num_patches // 2) * (num_patches - num_patches // 2) * head_width


def merge_tokens(x_BND: Tensor, sizes_BN: Tensor | None, *, matching: Matching, num_prefix: int) -> Merged:
    """Each target and what is merged into it become their mean, weighted by their sizes. Prefix tokens stay in front, then come the
    sources that were not merged, then the targets."""
    sizes_BN = x_BND.new_ones(x_BND.shape[:2], dtype=torch.float32) if sizes_BN is None else sizes_BN
    weight_BN1 = sizes_BN.to(x_BND.dtype).unsqueeze(-1)
    sums_BMD = _summed(x_BND * weight_BN1, matching=matching, num_prefix=num_prefix)
    sizes_BM = _summed(sizes_BN.unsqueeze(-1), matching=matching, num_prefix=num_prefix).squeeze(-1)
    return Merged(sums_BMD / sizes_BM.to(x_BND.dtype).unsqueeze(-1), sizes_BM)


def _summed(x_BND: Tensor, *, matching: Matching, num_prefix: int) -> Tensor:
    source_BSD, target_BTD = _in_turn(x_BND, num_prefix=num_prefix)
    unmerged_BUD = _taken(source_BSD, matching.unmerged_BU)
    index_BRD = matching.target_BR.unsqueeze(-1).expand(-1, -1, x_BND.shape[-1])
    target_BTD = target_BTD.scatter_add(1, index_BRD, _taken(source_BSD, matching.source_BR))
    return torch.cat([x_BND[:, :num_prefix], unmerged_BUD, target_BTD], dim=1)


def _in_turn(x_BND: Tensor, *, num_prefix: int) -> tuple[Tensor, Tensor]:
    """Sources and targets: the patches at even and at odd places, counted with the prefix tokens."""
    return x_BND[:, num_prefix + num_prefix % 2 :: 2], x_BND[:, num_prefix + 1 - num_prefix % 2 :: 2]


def _taken(x_BSD: Tensor, index_BR: Tensor) -> Tensor:
    return x_BSD.gather(1, index_BR.unsqueeze(-1).expand(-1, -1, x_BSD.shape[-1]))
