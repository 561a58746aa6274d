"""Comparing the checkpoints of two runs: tensor by tensor, bit by bit, a piece at a time."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from vitscale.checkpoint.fragments import Kind
from vitscale.checkpoint.layout import CHECKPOINTS, list_step_folders
from vitscale.checkpoint.reader import CheckpointReader

_CHUNK_ELEMENTS = 2**22
"""Read of each run's tensor at a time: 16 MiB."""


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """A tensor whose bits differ. `max_delta` is the largest absolute difference, None where `problem` says why there is none:
    a tensor that one run alone has, or has in another shape, or a value that is not finite."""

    name: str
    kind: Kind
    num_different: int
    max_delta: float | None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckpointComparison:
    """The checkpoints of one step: how many tensors and bytes each holds, the tensors and the host state that differ."""

    step: int
    num_tensors: int
    num_bytes: int
    different: tuple[TensorDifference, ...]
    state: dict[str, tuple[object, object]]
    """Dotted path to (A's, B's) value of whatever differs in step, cursor, data set, order and seed."""

    @property
    def is_equal(self) -> bool:
        """Whether weights, moments and averages are the same bits. The host state is shown and not counted."""
        return not self.different


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the committed checkpoints of a run, oldest first."""
    return sorted(entry.step for entry in list_step_folders(run / CHECKPOINTS) if entry.role == "committed")


def compare_checkpoints(path_a: Path, path_b: Path) -> CheckpointComparison:
    """Compare two committed checkpoints of the same step, whatever worlds and ZeRO stages wrote them.

    Raises `CheckpointError` when one is damaged.
    """
    a, b = CheckpointReader(path_a), CheckpointReader(path_b)
    shapes_a, shapes_b = _shapes(a), _shapes(b)
    different = []
    for key in sorted(shapes_a | shapes_b):
        shape_a, shape_b = shapes_a.get(key), shapes_b.get(key)
        if shape_a is None or shape_a != shape_b:
            problem = f"{_shape_text(shape_a)} in A, {_shape_text(shape_b)} in B"
            different.append(TensorDifference(name=key[0], kind=key[1], num_different=0, max_delta=None, problem=problem))
        elif (found := _compare_tensor(key, a=a, b=b, num_elements=math.prod(shape_a))) is not None:
            different.append(found)
    return CheckpointComparison(
        step=a.manifest.step,
        num_tensors=len(shapes_a),
        num_bytes=4 * sum(math.prod(shape) for shape in shapes_a.values()),
        different=tuple(different),
        state=differences(a.state, b.state),
    )


def differences(a: object, b: object, *, prefix: str = "") -> dict[str, tuple[object, object]]:
    """Dotted path to both values of every leaf that differs between two trees of plain values; None where there is no such leaf."""
    if isinstance(a, dict | list) or isinstance(b, dict | list):
        branches_a, branches_b = _branches(a), _branches(b)
        if branches_a is not None and branches_b is not None:
            found: dict[str, tuple[object, object]] = {}
            for key in [*branches_a, *(key for key in branches_b if key not in branches_a)]:
                found |= differences(branches_a.get(key), branches_b.get(key), prefix=f"{prefix}.{key}" if prefix else key)
            return found
    return {} if type(a) is type(b) and a == b else {prefix: (a, b)}


def _branches(tree: object) -> dict[str, object] | None:
    """What lies below by name or number; nothing below None, and None for a leaf."""
    if tree is None:
        return {}
    if isinstance(tree, list):
        return {str(index): item for index, item in enumerate(tree)}
    return {str(key): item for key, item in tree.items()} if isinstance(tree, dict) else None


_Key = tuple[str, Kind]


def _shapes(reader: CheckpointReader) -> dict[_Key, tuple[int, ...]]:
    return {(name, kind): shape for kind in reader.kinds for name, shape in reader.shapes(kind).items()}


def _shape_text(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"shape {shape}"


def _compare_tensor(key: _Key, *, a: CheckpointReader, b: CheckpointReader, num_elements: int) -> TensorDifference | None:
    name, kind = key
    num_different, deltas = 0, [0.0]
    for start in range(0, num_elements, _CHUNK_ELEMENTS):
        stop = min(start + _CHUNK_ELEMENTS, num_elements)
        values_a, values_b = (reader.read(name, kind=kind, start=start, stop=stop) for reader in (a, b))
        # As integers: a nan equals itself, and zero differs from minus zero.
        unequal = values_a.view(torch.int32) != values_b.view(torch.int32)
        if unequal.any():
            num_different += int(unequal.sum())
            deltas.append(float((values_a[unequal].double() - values_b[unequal].double()).abs().max()))
    if not num_different:
        return None
    if not all(math.isfinite(delta) for delta in deltas):
        return TensorDifference(name=name, kind=kind, num_different=num_different, max_delta=None, problem="nan or infinite in one of them")
    return TensorDifference(name=name, kind=kind, num_different=num_different, max_delta=max(deltas))
