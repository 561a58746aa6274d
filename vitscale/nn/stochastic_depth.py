"""Stochastic depth (Huang et al. 2016): in training a residual branch runs on the samples that keep it, and on no others."""

# B batch, R residual branches, K kept samples, N tokens, D width

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitscale.nn.context import BlockContext
from vitscale.nn.counter_hash import sample_bits, threshold
from vitscale.nn.dropout import BRANCH_SITE

Branch = Callable[[Tensor, BlockContext], Tensor]


def kept_samples(seed_B: Tensor, *, rates: Sequence[float]) -> tuple[Tensor | None, ...]:
    """For each branch, dropped with its rate, the samples (K,) that keep it; None where its rate is 0. Empty if all are.

    Waits for the device once for all branches: how many samples are left decides how much is computed.
    """
    if not any(rates):
        return ()
    bits_BR = sample_bits(seed_B, site=BRANCH_SITE, num_values=len(rates))
    kept_BR = bits_BR >= torch.tensor([threshold(rate) for rate in rates], device=seed_B.device)
    order_BR = kept_BR.to(torch.uint8).argsort(dim=0, descending=True, stable=True)
    counts = kept_BR.sum(dim=0).tolist()
    return tuple(order_BR[:count, branch] if rates[branch] else None for branch, count in enumerate(counts))


def add_branch(x_BND: Tensor, branch: Branch, *, context: BlockContext, index: int, rate: float, past_BND: Tensor | None = None) -> Tensor:
    """`x + branch(x)`; where samples are dropped, `x + branch(x) / (1 - rate)` for those that keep branch number `index`.

    `past_BND` is what goes past the branch, where that is not `x` itself.
    A branch that no sample keeps still runs, on no sample: every rank must gather its weights and reduce their gradients.
    """
    kept_K = context.kept[index] if context.kept else None
    past_BND = x_BND if past_BND is None else past_BND
    if kept_K is None:
        return past_BND + branch(x_BND, context)
    y_KND = branch(x_BND[kept_K], context.of_samples(kept_K))
    return past_BND.index_add(0, kept_K, y_KND, alpha=1 / (1 - rate))


def add_result(x_BND: Tensor, y_BND: Tensor, *, context: BlockContext, index: int, rate: float) -> Tensor:
    """As `add_branch`, of a branch that has run on all samples (B, N, D)."""
    kept_K = context.kept[index] if context.kept else None
    if kept_K is None:
        return x_BND + y_BND
    return x_BND.index_add(0, kept_K, y_BND[kept_K], alpha=1 / (1 - rate))
