"""Writing safetensors and npz as streams: the shapes are known before, the values come a piece at a time."""

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from torch import Tensor

from vitscale.weights.forms import Shape

Write = Callable[[bytes | memoryview], None]


def write_safetensors(
    write: Write, *, shapes: Mapping[str, Shape], values: Callable[[str], Iterable[Tensor]], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file of fp32 tensors front to back. `values` gives the elements of a tensor by name, in order, as any
    number of contiguous fp32 pieces."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    write(len(text).to_bytes(8, "little") + text)
    for name, shape in shapes.items():
        written = 0
        for piece in values(name):
            write(piece.detach().reshape(-1).contiguous().numpy().data.cast("B"))
            written += piece.numel()
        assert written == math.prod(shape), (name, written, shape)


def write_npz(path: Path, *, groups: Iterable[Mapping[str, Tensor]], prefix: str) -> None:
    """Write an uncompressed npz file of fp32 arrays, `prefix` before every name.

    One group of tensors is asked for at a time. Views are not copied whole.
    """
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_STORED, allowZip64=True) as archive:
        for group in groups:
            for name, value in group.items():
                # A ZipInfo made so has a fixed date: equal weights give equal bytes.
                with archive.open(zipfile.ZipInfo(f"{prefix}{name}.npy"), "w", force_zip64=True) as member:
                    npy.write_array(member, np.asarray(value.detach().numpy()), allow_pickle=False)
