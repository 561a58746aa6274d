"""The one polymorphic part of a training step: an objective owns backbone, heads, loss and the transform of its samples."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn

from vitscale.data.types import Batch


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What one forward pass hands to the engine: `loss` (scalar, the mean over the batch, with graph) and `metrics`
    (detached scalars that stay on the device; each is a mean over the batch)."""

    loss: Tensor
    metrics: dict[str, Tensor]


Method = Literal["predict", "spend"]
"""What evaluators ask of an objective."""


class Spending(NamedTuple):
    """What was predicted, and how many tokens each block computed of each image for it (B, blocks)."""

    # A tuple because DeepSpeed's ZeRO-3 hooks look for tensors in tuples, lists and dicts only.
    logits_BK: Tensor
    tokens_BL: Tensor


class Objective(nn.Module, ABC):
    """Backbone, heads and loss as one module, which the engine wraps as a whole.

    `batch_keys` names the tensors it reads; the loader checks them once. `backbone` is what evaluators and converters get.
    """

    batch_keys: frozenset[str]
    backbone: nn.Module

    @abstractmethod
    def forward(self, batch: Batch, step: int) -> StepOutput:
        """The loss of a micro-batch at an optimizer step. Reads `batch_keys` only."""

    def predict(self, batch: Batch) -> Tensor:
        """What evaluators score, for example logits (B, K), of `batch["image"]` (uint8, B C H W)."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to predict")

    def spend(self, batch: Batch) -> Spending:
        """What `predict` gives, with what it took, of a backbone that does not compute the same for all images."""
        raise NotImplementedError(f"{type(self).__name__} spends the same on all images")

    def after_step(self, step: int) -> None:
        """Called on every rank after the optimizer stepped. Defaults to nothing."""
