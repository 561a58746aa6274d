"""Reading a committed checkpoint: any range of any tensor, whichever ranks wrote its pieces."""

import bisect
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitscale.checkpoint.durable import disk_errors
from vitscale.checkpoint.fragment_file import OpenFiles, Piece, read_pieces, read_range
from vitscale.checkpoint.fragments import Kind
from vitscale.checkpoint.layout import CONFIG, STATE
from vitscale.checkpoint.manifest import Manifest, read_manifest
from vitscale.config import CheckpointError
from vitscale.dist.agreement import on_main


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A whole tensor as its pieces, which lie in the order of their elements without gap or overlap."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a checkpoint holds and where: its manifest and the pieces in its files."""

    manifest: Manifest
    pieces: tuple[Piece, ...]


class CheckpointReader:
    """A committed checkpoint, opened. Reads tensor data on demand, straight to where it is wanted.

    `contents` is what `read_contents` found in it; left out, it is read here. The map of the pieces takes about 250 bytes of
    memory for each piece. Raises `CheckpointError` when a file is missing or damaged, or when the pieces do not tile each
    tensor exactly.
    """

    def __init__(self, path: Path, *, contents: Contents | None = None) -> None:
        contents = contents or read_contents(path)
        self.path = path
        self.manifest = contents.manifest
        self._tensors = assemble(contents.pieces)
        self._files = OpenFiles()

    @cached_property
    def state(self) -> dict[str, Any]:
        """The host state saved along (step, data cursor, random state), as plain JSON. Raises `CheckpointError` where it cannot be
        read."""
        state: dict[str, Any] = json.loads(self._text(STATE))
        return state

    @cached_property
    def config_text(self) -> str:
        """The resolved configuration of the run that wrote it, as YAML. Raises as `state` does."""
        return self._text(CONFIG)

    @property
    def kinds(self) -> frozenset[Kind]:
        """Which kinds of tensor it holds."""
        return frozenset(kind for _, kind in self._tensors)

    def shapes(self, kind: Kind = "weight") -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a kind, in the order of their names."""
        return {name: tensor.shape for (name, held_kind), tensor in sorted(self._tensors.items()) if held_kind == kind}

    def read(self, name: str, *, kind: Kind = "weight", start: int = 0, stop: int | None = None) -> Tensor:
        """The elements [start, stop) of the flattened tensor as flat fp32 on the CPU. Reads those bytes only.

        `stop` None reads to the end. Raises `CheckpointError` when there is no such tensor.
        """
        stop = math.prod(self._find(name, kind).shape) if stop is None else stop
        values = torch.empty(stop - start, dtype=torch.float32)
        self.read_into(values, name=name, kind=kind, start=start)
        return values

    def read_into(self, into: Tensor, *, name: str, kind: Kind, start: int) -> None:
        """Fill the flat fp32 CPU tensor `into` with the elements of the flattened tensor from `start` on. Takes no memory."""
        tensor, stop = self._find(name, kind), start + into.numel()
        assert 0 <= start <= stop <= math.prod(tensor.shape), (name, start, stop, tensor.shape)
        first = bisect.bisect_right(tensor.pieces, start, key=lambda piece: piece.start) - 1
        for piece in tensor.pieces[first:]:
            low, high = max(start, piece.start), min(stop, piece.stop)
            if low >= high:
                break
            read_range(piece, start=low, stop=high, into=into[low - start : high - start], files=self._files)

    def read_full(self, name: str, *, kind: Kind = "weight") -> Tensor:
        """The whole tensor in its shape, fp32 on the CPU."""
        return self.read(name, kind=kind).view(self._find(name, kind).shape)

    def _text(self, name: str) -> str:
        with disk_errors():
            return (self.path / name).read_text(encoding="utf-8")

    def _find(self, name: str, kind: Kind) -> StoredTensor:
        tensor = self._tensors.get((name, kind))
        if tensor is None:
            raise CheckpointError(f"{self.path}: holds no {kind} of {name!r}; it was written by a run without it")
        return tensor


def open_on_all_ranks(path: Path) -> CheckpointReader:
    """The checkpoint at `path`, opened by every rank. Collective: rank 0 alone reads the manifest and what is in which file,
    so that each rank opens no other files than those it reads data from. Raises `CheckpointError` on all ranks alike."""
    shared = on_main(lambda: _encode_contents(read_contents(path)))
    return CheckpointReader(path, contents=_decode_contents(shared, path=path))


def read_contents(path: Path) -> Contents:
    """Read the manifest and the headers of all files; the hashes are for `vitscale.checkpoint.discover.verify`. Raises
    `CheckpointError` when a file is missing, has another size than it should, or is damaged."""
    manifest = read_manifest(path)
    for entry in manifest.files:
        check_size(path / entry.name, expected=entry.bytes)
    return Contents(manifest=manifest, pieces=tuple(piece for entry in manifest.rank_files() for piece in read_pieces(path / entry.name)))


def check_size(path: Path, *, expected: int) -> None:
    """Raise `CheckpointError` unless the file is there with the expected number of bytes."""
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}, though the checkpoint's manifest lists it") from None
    if num_bytes != expected:
        raise CheckpointError(f"{path}: has {num_bytes} bytes where the checkpoint's manifest says {expected}")


def assemble(pieces: Iterable[Piece]) -> dict[tuple[str, Kind], StoredTensor]:
    """Put the pieces of all ranks together by (name, kind). Raises `CheckpointError` on a gap, an overlap or two shapes."""
    grouped: dict[tuple[str, Kind], list[Piece]] = {}
    for piece in pieces:
        grouped.setdefault((piece.name, piece.kind), []).append(piece)
    return {key: _whole_tensor(sorted(group, key=lambda piece: piece.start)) for key, group in grouped.items()}


def _whole_tensor(pieces: Sequence[Piece]) -> StoredTensor:
    first = pieces[0]
    reached = 0
    for piece in pieces:
        if piece.shape != first.shape:
            raise CheckpointError(f"{piece.path}: {piece.name} has shape {piece.shape} here and {first.shape} in {first.path.name}")
        # Each piece must start where the one before it ended: a sum of lengths would let an overlap hide a gap.
        if piece.start != reached:
            problem = "missing" if piece.start > reached else "stored twice"
            low, high = sorted((reached, piece.start))
            raise CheckpointError(f"{piece.path.parent}: elements [{low}, {high}) of {piece.name} ({piece.kind}) are {problem}")
        reached = piece.stop
    if reached != math.prod(first.shape):
        raise CheckpointError(
            f"{first.path.parent}: elements [{reached}, {math.prod(first.shape)}) of {first.name} ({first.kind}) are missing"
        )
    return StoredTensor(name=first.name, kind=first.kind, shape=first.shape, pieces=tuple(pieces))


def _encode_contents(contents: Contents) -> dict[str, Any]:
    """By column, and each tensor once: there may be as many pieces as tensors times ranks."""
    numbers: dict[tuple[str, str, tuple[int, ...]], int] = {}
    return {
        "manifest": contents.manifest.model_dump_json(),
        "tensor": [numbers.setdefault((p.name, p.kind, p.shape), len(numbers)) for p in contents.pieces],
        "file": [p.path.name for p in contents.pieces],
        "start": [p.start for p in contents.pieces],
        "stop": [p.stop for p in contents.pieces],
        "offset": [p.offset for p in contents.pieces],
        "tensors": list(numbers),
    }


def _decode_contents(shared: dict[str, Any], *, path: Path) -> Contents:
    manifest = Manifest.model_validate_json(shared["manifest"])
    paths = {entry.name: path / entry.name for entry in manifest.files}
    tensors = [(name, kind, tuple(shape)) for name, kind, shape in shared["tensors"]]
    rows = zip(*(shared[column] for column in ("tensor", "file", "start", "stop", "offset")), strict=True)
    pieces = (
        Piece(name=name, kind=kind, shape=shape, start=start, stop=stop, path=paths[file], offset=offset)
        for number, file, start, stop, offset in rows
        for name, kind, shape in [tensors[number]]
    )
    return Contents(manifest=manifest, pieces=tuple(pieces))
