"""What the stems of vision transformers have in common: units from an image to a map of features, and what these cost."""

# B batch, C channels, H height, W width

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


class UnitRunner(Protocol):
    """Runs unit number i on its input. The engine puts its own in place to recompute activations."""

    def __call__(self, index: int, unit: nn.Module, x_BCHW: Tensor, /, **context: Any) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class UnitShape:
    """The sizes of a unit of a stem that FLOPs and memory depend on; elements and FLOPs are per image."""

    forward_flops: int
    input_elements: int
    convolved_elements: int
    """Results of its convolutions."""
    activated_elements: int
    """Results of its activations, and padded copies, but for the unit's own result, which is the input of what follows."""
    index_bytes: int = 0
    """Of the places that max pooling took its values from."""
    standardised_elements: int = 0
    """Elements of its standardised kernels, which are kept beside the kernels, once for a batch."""


@dataclass(frozen=True, kw_only=True)
class StemShape:
    """The sizes of a stem at one size of the image."""

    units: tuple[UnitShape, ...]
    result_elements: int
    """Elements of the map of features of one image."""

    @property
    def forward_flops(self) -> int:
        """FLOPs of the forward pass of one image."""
        return sum(unit.forward_flops for unit in self.units)


class Stem(nn.Module):
    """An image to the map of features that patches are cut from. Its units run one after the other, through `unit_runner`."""

    unit_runner: UnitRunner

    def __init__(self) -> None:
        super().__init__()
        self.unit_runner = run_unit

    @abstractmethod
    def units(self) -> Iterator[nn.Module]:
        """Every unit, in the order in which they run."""

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Images (B, C, H, W) to features (B, C', H / stride, W / stride)."""
        x_BCHW = image_BCHW
        for index, unit in enumerate(self.units()):
            x_BCHW = self.unit_runner(index, unit, x_BCHW)
        return x_BCHW


def run_unit(index: int, unit: nn.Module, x_BCHW: Tensor, /, **context: Any) -> Tensor:  # noqa: ARG001  (a UnitRunner)
    """The plain unit runner: just calls the unit."""
    y_BCHW: Tensor = unit(x_BCHW, **context)
    return y_BCHW
