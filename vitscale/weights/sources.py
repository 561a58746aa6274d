"""Weight files of other projects, opened: names, shapes and one tensor at a time, from safetensors or npz, never from a pickle.

What a file is, its first bytes tell, not its name.
"""

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitscale.config import CheckpointError
from vitscale.weights.forms import Shape

Container = Literal["safetensors", "npz", "pickle"]

_WEIGHT_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
_INDEX = "model.safetensors.index.json"
_AGAIN = "Download or copy the file again."
_SAFETENSORS_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BFLOAT16 = np.dtype("V2")
"""How numpy, which has no bfloat16, reads arrays of it."""


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """Weights by name. `read` gives one whole tensor in fp32 on the CPU and raises `CheckpointError` where it is damaged.

    `files` are those it reads from; `settings` holds the JSON files beside them, by name.
    """

    path: Path
    files: tuple[Path, ...]
    container: Container
    shapes: Mapping[str, Shape]
    read: Callable[[str], Tensor]
    settings: Mapping[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a tensor lies in a safetensors file, from the byte `offset` on."""

    path: Path
    dtype: str
    shape: Shape
    offset: int
    num_bytes: int


def find_weight_files(path: Path) -> tuple[Path, ...]:
    """The file at `path`, or the weight files of a folder as timm, Hugging Face and open_clip lay it out.

    Raises `CheckpointError` where there is none.
    """
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder; give a file of weights, or a folder that holds model.safetensors")
    if (path / _INDEX).is_file():
        parts = sorted(set(_read_json(path / _INDEX).get("weight_map", {}).values()))
        if any(Path(part).name != part for part in parts):
            raise CheckpointError(f"{path / _INDEX}: names files outside of its folder; {_AGAIN}")
        missing = [part for part in parts if not (path / part).is_file()]
        if missing or not parts:
            raise CheckpointError(f"{path}: {', '.join(missing[:3]) or 'every file'} of {_INDEX} is missing; {_AGAIN}")
        return tuple(path / part for part in parts)
    found = next((path / name for name in _WEIGHT_FILES if (path / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{path}: holds none of {', '.join((*_WEIGHT_FILES, _INDEX))}; give the file of the weights itself")
    return (found,)


def recognise_container(path: Path) -> Container:
    """What kind of file it is. Raises `CheckpointError` where it is none of the three, and for a pickle that is called .npz."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if start[:4] == b"PK\x03\x04":
        names = _zip_names(path)
        if any(name.endswith("data.pkl") for name in names):
            return _pickle(path, why="is a file of torch.save, which is a pickle in a zip archive")
        return "npz"
    # Before the next: a header's length may begin with the byte that a pickle begins with.
    if start[8:9] == b"{":
        return "safetensors"
    if start[:1] == b"\x80":
        return _pickle(path, why="is a pickle")
    if path.suffix == ".npz":
        raise CheckpointError(f"{path}: is no zip archive, which every .npz file is: cut off at the front, or something else. {_AGAIN}")
    raise CheckpointError(f"{path}: neither safetensors nor npz nor a file of torch.save. {_AGAIN}")


def open_source(path: Path, *, files: tuple[Path, ...], container: Literal["safetensors", "npz"]) -> WeightSource:
    """Open the weight `files` found at `path`. Reads their headers only. Raises `CheckpointError` where they are damaged."""
    shapes, read = (_open_npz if container == "npz" else _open_safetensors)(files)
    return WeightSource(path=path, files=files, container=container, shapes=shapes, read=read, settings=_read_settings(path))


def open_pickle(path: Path, *, file: Path, shapes: Mapping[str, Shape]) -> WeightSource:
    """The source of a pickle `file` of tensors of known `shapes`, whose values nobody reads."""

    def read(name: str) -> Tensor:
        raise AssertionError(f"{name}: of a pickle the shapes only are known")

    return WeightSource(path=path, files=(file,), container="pickle", shapes=shapes, read=read, settings=_read_settings(path))


def _read_settings(path: Path) -> dict[str, dict[str, Any]]:
    names = ("config.json", "preprocessor_config.json", "open_clip_config.json") if path.is_dir() else ()
    return {name: _read_json(path / name) for name in names if (path / name).is_file()}


def _pickle(path: Path, *, why: str) -> Literal["pickle"]:
    if path.suffix in (".npz", ".safetensors"):
        raise CheckpointError(
            f"{path}: {why}, though its name says {path.suffix}; loading a pickle can run any program its author put in. Do not use"
            " this file, unless you know where it is from and rename it to .pth"
        )
    return "pickle"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: it is not JSON ({error}). {_AGAIN}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: damaged: it holds no JSON object. {_AGAIN}")
    return values


def _open_safetensors(files: tuple[Path, ...]) -> tuple[dict[str, Shape], Callable[[str], Tensor]]:
    shapes: dict[str, Shape] = {}
    places: dict[str, _Place] = {}
    for path in files:
        try:
            with safe_open(path, "pt"):  # checks that header and size of the file agree
                pass
            found = _read_safetensors_header(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: damaged or cut off: {error}. {_AGAIN}") from None
        shapes |= {name: place.shape for name, place in found.items()}
        places |= found

    def read(name: str) -> Tensor:
        # Not through the library, which maps the file: its pages then count as memory of the process, the whole file in the end.
        place = places[name]
        if place.dtype not in _SAFETENSORS_TYPES:
            raise CheckpointError(f"{place.path}: {name} holds {place.dtype} values, and weights are floating-point of 16 to 64 bits")
        data = bytearray(place.num_bytes)
        with place.path.open("rb") as file:
            file.seek(place.offset)
            if file.readinto(data) != place.num_bytes:
                raise CheckpointError(f"{place.path}: cut off within {name}. {_AGAIN}")
        if not data:
            return torch.empty(place.shape)
        return torch.frombuffer(data, dtype=_SAFETENSORS_TYPES[place.dtype]).view(place.shape).float()

    return shapes, read


def _read_safetensors_header(path: Path) -> dict[str, _Place]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: _Place(
            path=path,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            offset=8 + length + entry["data_offsets"][0],
            num_bytes=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


def _open_npz(files: tuple[Path, ...]) -> tuple[dict[str, Shape], Callable[[str], Tensor]]:
    (path,) = files
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for member_name in archive.namelist():
            name = member_name.removesuffix(".npy")
            if name == member_name:
                raise CheckpointError(f"{path}: holds {name}, which is no array; every member of an npz file is. {_AGAIN}")
            try:
                with archive.open(member_name) as member:
                    shape, dtype = _read_npy_header(member)
            except (ValueError, OSError, zipfile.BadZipFile, NotImplementedError) as error:
                raise CheckpointError(f"{path}: {name} is damaged: {error}. {_AGAIN}") from None
            if dtype.hasobject:
                raise CheckpointError(
                    f"{path}: {name} holds Python objects, that is a pickle, which can run any program when it is loaded. Ask for a"
                    " file of plain arrays"
                )
            shapes[name] = shape

    def read(name: str) -> Tensor:
        try:
            # The checksum of a member is compared when its last byte is read.
            with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
                array = npy.read_array(member, allow_pickle=False)
                member.read()
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
            raise CheckpointError(f"{path}: {name} is damaged: {error}. {_AGAIN}") from None
        if array.dtype == _BFLOAT16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
        return _as_fp32(torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape), name=name, path=path)

    return shapes, read


def _read_npy_header(member: Any) -> tuple[Shape, np.dtype[Any]]:
    version = npy.read_magic(member)
    shape, _, dtype = npy.read_array_header_1_0(member) if version == (1, 0) else npy.read_array_header_2_0(member)
    return tuple(shape), dtype


def _as_fp32(tensor: Tensor, *, name: str, path: Path) -> Tensor:
    if not tensor.is_floating_point():
        raise CheckpointError(f"{path}: {name} holds {str(tensor.dtype).removeprefix('torch.')} values, and weights are floating-point")
    return tensor.float()


def _zip_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"{path}: damaged or cut off: {error}. {_AGAIN}") from None
