"""One rank's file of fragments: a plain safetensors file, written as a stream and read by byte range.

Tensor `NAME|KIND|START` holds, flat and in fp32, the elements of NAME's KIND from START on; the metadata entry `shapes`
holds the whole shape of each NAME as JSON. We write the container ourselves, since the library wants every tensor in one
call and refuses views that share storage, while a checkpoint is made of such views and is hashed on the way.
"""

import hashlib
import json
import math
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from vitscale.checkpoint.durable import DurableStream
from vitscale.checkpoint.fragments import ELEMENT_BYTES, Fragment, Kind
from vitscale.checkpoint.manifest import FileEntry
from vitscale.config import CheckpointError

CHUNK_ELEMENTS = 2**20
"""Elements on their way between device, hash and disk at a time: 4 MiB."""

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library, too


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Where the elements [start, stop) of a tensor lie: in the file `path`, from byte `offset` on."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    start: int
    stop: int
    path: Path
    offset: int


def write_fragments(path: Path, *, fragments: Iterable[Fragment], given_up: threading.Event | None = None) -> FileEntry:
    """Write the fragments to the new file `path`, wait until they are on disk and return size and sha256.

    Needs memory for one chunk beside the fragments themselves, none where they lie in host memory. Empty fragments are left
    out. Raises `CheckpointError` at the next chunk once `given_up` is set.
    """
    whole = [fragment for fragment in fragments if fragment.values.numel()]
    header = _encode_header(whole)
    digest = hashlib.sha256(header)
    with path.open("xb") as file:
        stream = DurableStream(file)
        stream.write(header)
        for chunk in _chunks(whole):
            if given_up is not None and given_up.is_set():
                raise CheckpointError("given up, since training has ended")
            digest.update(chunk)
            stream.write(chunk)
        num_bytes = stream.finish()
    return FileEntry(name=path.name, bytes=num_bytes, sha256=digest.hexdigest())


def read_pieces(path: Path) -> list[Piece]:
    """What a file of fragments holds; reads its header only. Raises `CheckpointError` when it is damaged."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            data_start = _LENGTH_BYTES + length
            num_bytes = os.fstat(file.fileno()).st_size
            if not 0 < length <= min(_MAX_HEADER_BYTES, num_bytes - _LENGTH_BYTES):
                raise ValueError(f"a header of {length} bytes does not fit")
            header = json.loads(file.read(length))
        return _decode_header(header, path=path, data_start=data_start, num_bytes=num_bytes)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; use another checkpoint") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged header ({error}); use another checkpoint") from None


class OpenFiles:
    """Files that stay open between reads of their ranges, the most recently used ones: a file system of a cluster takes
    milliseconds to open one. Any thread may read. A file is closed when it is neither among these nor being read."""

    def __init__(self, *, limit: int = 32) -> None:
        self._limit = limit
        self._files: dict[Path, _OpenFile] = {}
        self._lock = threading.Lock()

    def read(self, path: Path, *, offset: int, into: memoryview) -> int:
        """Fill `into` with the bytes of the file from `offset` on; how many there were."""
        file = self._open(path)
        done = 0
        # One call reads 2 GiB at most.
        while done < len(into) and (count := os.preadv(file.descriptor, [into[done:]], offset + done)):
            done += count
        return done

    def _open(self, path: Path) -> "_OpenFile":
        with self._lock:
            file = self._files.pop(path, None) or _OpenFile(path)
            self._files[path] = file
            if len(self._files) > self._limit:
                del self._files[next(iter(self._files))]
            return file


class _OpenFile:
    """Closed with the last reference to it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)


def read_range(piece: Piece, *, start: int, stop: int, into: Tensor, files: OpenFiles) -> None:
    """Read the elements [start, stop) of the piece's tensor into the flat fp32 CPU tensor `into`, and nothing else."""
    assert piece.start <= start < stop <= piece.stop, (piece, start, stop)
    assert into.is_contiguous(), into.stride()
    assert into.numel() == stop - start, (into.numel(), start, stop)
    offset = piece.offset + (start - piece.start) * ELEMENT_BYTES
    if files.read(piece.path, offset=offset, into=into.numpy().data.cast("B")) != into.numel() * ELEMENT_BYTES:
        raise CheckpointError(f"{piece.path}: ends within {piece.name}; use another checkpoint")


def _encode_header(fragments: Sequence[Fragment]) -> bytes:
    shapes: dict[str, list[int]] = {}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for fragment in fragments:
        _check_fragment(fragment)
        assert shapes.setdefault(fragment.name, list(fragment.shape)) == list(fragment.shape), f"{fragment.name} has two shapes"
        key = f"{fragment.name}|{fragment.kind}|{fragment.start}"
        assert key not in header, f"{key} is given twice"
        end = offset + fragment.values.numel() * ELEMENT_BYTES
        header[key] = {"dtype": "F32", "shape": [fragment.values.numel()], "data_offsets": [offset, end]}
        offset = end
    header["__metadata__"]["shapes"] = json.dumps(shapes)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # the data of a safetensors file is aligned to 8 bytes
    assert len(text) <= _MAX_HEADER_BYTES, f"a header of {len(text)} bytes is more than safetensors readers take"
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _check_fragment(fragment: Fragment) -> None:
    stop = fragment.start + fragment.values.numel()
    assert "|" not in fragment.name, fragment.name
    assert (fragment.values.dtype, fragment.values.ndim) == (torch.float32, 1), f"{fragment.name}: flat fp32 expected"
    assert 0 <= fragment.start < stop <= math.prod(fragment.shape), f"{fragment.name}: [{fragment.start}, {stop}) of {fragment.shape}"


def _chunks(fragments: Sequence[Fragment]) -> Iterator[memoryview]:
    for fragment in fragments:
        for part in fragment.values.detach().split(CHUNK_ELEMENTS):
            yield part.cpu().contiguous().numpy().data.cast("B")


def _decode_header(header: dict[str, Any], *, path: Path, data_start: int, num_bytes: int) -> list[Piece]:
    metadata = header.pop("__metadata__")
    shapes = json.loads(metadata["shapes"])
    pieces = []
    for key, entry in header.items():
        name, kind, start_text = key.split("|")
        start, (begin, end) = int(start_text), entry["data_offsets"]
        shape = tuple(int(size) for size in shapes[name])
        stop = start + (end - begin) // ELEMENT_BYTES
        if entry["dtype"] != "F32" or kind not in get_args(Kind) or entry["shape"] != [stop - start]:
            raise ValueError(f"{key} is not a flat fp32 fragment")
        if not (0 <= begin < end <= num_bytes - data_start and 0 <= start < stop <= math.prod(shape)):
            raise ValueError(f"{key} lies outside the file or its tensor")
        pieces.append(Piece(name=name, kind=cast(Kind, kind), shape=shape, start=start, stop=stop, path=path, offset=data_start + begin))
    return pieces
