"""Activation checkpointing of transformer blocks and stems: keep less of the forward pass, compute it again in the backward pass."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from vitscale.run_config import RecomputeMode

_aten = torch.ops.aten
# The results that cost most to compute again. Everything else in a block is element-wise.
_KEPT = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.convolution.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    }
)


@dataclass(frozen=True, kw_only=True)
class Recompute:
    """A block runner that recomputes every `every`-th block (numbers 0, every, 2 every, ...). Results are bit-identical
    in all modes.

    `mode` is selective (keeps the results of matrix products and attention; Korthikanti et al. 2022) or full (keeps the
    block's input only; Chen et al. 2016).
    """

    mode: RecomputeMode
    every: int = 1

    def __call__(self, index: int, block: nn.Module, tokens: Tensor, /, **context: Any) -> Any:
        """Run block number `index` on its input and what else it takes."""
        if index % self.every or not torch.is_grad_enabled():
            return block(tokens, **context)
        if self.mode == "full":
            return checkpoint(block, tokens, use_reentrant=False, **context)
        contexts = partial(create_selective_checkpoint_contexts, _policy)
        return checkpoint(block, tokens, use_reentrant=False, context_fn=contexts, **context)


def apply_recompute(backbone: nn.Module, *, mode: RecomputeMode, every: int) -> None:
    """Make `backbone` run its blocks, and the units of its stem, through `Recompute`; `none` leaves it as it is."""
    if mode == "none":
        return
    assert hasattr(backbone, "block_runner"), f"{type(backbone).__name__} runs its blocks without a block_runner"
    backbone.block_runner = Recompute(mode=mode, every=every)  # type: ignore[assignment]
    stem = getattr(backbone, "stem", None)
    if stem is not None:
        stem.unit_runner = Recompute(mode=mode)


def _policy(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
