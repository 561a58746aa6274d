"""What an export reads, a checkpoint's tensors, and what it writes: the files of one layout."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitscale.checkpoint.fragments import Kind
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.models import ViTConfig
from vitscale.nn.positions import sincos_positions
from vitscale.train.equality import Foreign
from vitscale.train.stored_model import StoredModel, check_fits
from vitscale.weights.forms import Shape
from vitscale.weights.rule import POSITIONS
from vitscale.weights.rules import HeldConfig

_CHUNK_ELEMENTS = 1 << 22
"""Elements on their way between files: 16 MiB."""


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """How weights get into the files of one layout, and how those are opened again to be compared."""

    names: tuple[str, ...]
    """Of the files; the first has what describes the weights."""
    shapes: dict[str, Shape]
    """Of the tensors in them."""
    memory_bytes: int
    """What writing them holds at a time, at least."""
    held: str
    """What that is."""
    library: str
    """Whose models load them."""
    write: Callable[[Path, Callable[[int], None]], None]
    """Makes the first file, and the others beside it, telling the bytes that were written."""
    foreign: Callable[[Path], Foreign]
    """What the first file holds."""
    older_names: tuple[str, ...] = ()
    """Which an older export of other weights may have besides."""
    interface: tuple[str, ...] = ()
    """What goes into the model and what comes out of it, in sentences, where no library says it."""

    @property
    def num_bytes(self) -> int:
        """Of the weights, in fp32."""
        return num_bytes_of(self.shapes)


def num_bytes_of(shapes: Mapping[str, Shape]) -> int:
    """Of tensors in fp32."""
    return sum(4 * math.prod(shape) for shape in shapes.values())


class StoredWeights:
    """The tensors of a checkpoint, and the table of fixed positions, which is no parameter here but is one elsewhere."""

    def __init__(self, reader: CheckpointReader, *, stored: StoredModel, model: HeldConfig, kind: Kind) -> None:
        with torch.device("meta"):
            module = stored.build()
        check_fits(module, reader=reader, kind=kind)
        self._reader = reader
        self._kind = kind
        self._fixed = _fixed_positions(model)
        tensors = {**dict(module.named_parameters()), **self._fixed}
        self.shapes: dict[str, Shape] = {name: tuple(value.shape) for name, value in tensors.items()}

    @property
    def num_bytes(self) -> int:
        """Of all of them, in fp32."""
        return num_bytes_of(self.shapes)

    def read(self, name: str) -> Tensor:
        """A whole tensor."""
        return self._fixed[name] if name in self._fixed else self._reader.read_full(name, kind=self._kind)

    def pieces(self, name: str, *, start: int, stop: int) -> Iterator[Tensor]:
        """Its elements [start, stop) in order, a chunk at a time."""
        if name in self._fixed:
            yield self._fixed[name].flatten()[start:stop]
            return
        for begin in range(start, stop, _CHUNK_ELEMENTS):
            yield self._reader.read(name, kind=self._kind, start=begin, stop=min(begin + _CHUNK_ELEMENTS, stop))


def _fixed_positions(model: HeldConfig) -> dict[str, Tensor]:
    if not isinstance(model, ViTConfig) or (model.positions != "sincos2d_mae" and model.positions != "sincos2d_big_vision"):
        return {}
    shape = model.shape
    table = sincos_positions(model.positions, rows=shape.grid, columns=shape.grid, width=shape.width, class_token=shape.class_token)
    return {POSITIONS: table}
