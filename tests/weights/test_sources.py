"""Weight files: what they hold, what a file is, and every kind of damage."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.weights.foreign import as_bfloat16, npz_bytes
from vitscale.config import CheckpointError
from vitscale.weights.sources import WeightSource, find_weight_files, open_source, recognise_container

VALUES = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7


def opened(path: Path) -> WeightSource:
    files = find_weight_files(path)
    container = recognise_container(files[0])
    assert container != "pickle"
    return open_source(path, files=files, container=container)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npz_arrays_are_read_in_their_order(tmp_path: Path, dtype: type) -> None:
    (tmp_path / "w.npz").write_bytes(npz_bytes({"a/b": VALUES.astype(dtype), "fortran": np.asfortranarray(VALUES), "s": VALUES[0, 0, 1]}))
    source = opened(tmp_path / "w.npz")
    assert source.shapes == {"a/b": (2, 3, 4), "fortran": (2, 3, 4), "s": ()}
    assert np.array_equal(source.read("a/b").numpy(), VALUES.astype(dtype).astype(np.float32))
    assert np.array_equal(source.read("fortran").numpy(), VALUES)
    assert source.read("s").shape == ()


def test_two_bytes_of_no_type_are_bfloat16(tmp_path: Path) -> None:
    (tmp_path / "w.npz").write_bytes(npz_bytes({"a": as_bfloat16(VALUES)}))
    assert torch.equal(opened(tmp_path / "w.npz").read("a"), torch.from_numpy(VALUES).bfloat16().float())


def test_safetensors_in_parts(tmp_path: Path) -> None:
    for index in range(2):
        save_file({f"t{index}": torch.full((2,), float(index)).half()}, tmp_path / f"part-{index}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"t0": "part-0.safetensors", "t1": "part-1.safetensors"}}')
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    source = opened(tmp_path)
    assert source.settings == {"config.json": {"model_type": "vit"}}
    assert source.read("t1").tolist() == [1.0, 1.0]
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"part-1\.safetensors of .* is missing"):
        opened(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"t0": "../part-0.safetensors"}}')
    with pytest.raises(CheckpointError, match="outside of its folder"):
        opened(tmp_path)


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none", "no such file"), (tmp_path, "holds none of model.safetensors")):
        with pytest.raises(CheckpointError, match=message):
            find_weight_files(path)
    (tmp_path / "text").write_text("hello, this is text")
    with pytest.raises(CheckpointError, match="neither safetensors nor npz"):
        recognise_container(tmp_path / "text")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_is_one_whatever_it_is_called(tmp_path: Path, legacy: bool) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert recognise_container(tmp_path / "w.pth") == "pickle"
    for name in ("w.npz", "w.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / "w.pth").read_bytes())
        with pytest.raises(CheckpointError, match="can run any program"):
            recognise_container(tmp_path / name)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_every_truncation_is_noticed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"w.{kind}"
    if kind == "npz":
        path.write_bytes(npz_bytes({"a": VALUES, "b": VALUES}))
    else:
        save_file({"a": torch.from_numpy(VALUES), "b": torch.from_numpy(VALUES.copy())}, path)
    content = path.read_bytes()
    for length in range(0, len(content), 17):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            opened(path)


def test_a_flipped_bit_in_an_array_is_noticed(tmp_path: Path) -> None:
    content = bytearray(npz_bytes({"a": VALUES}))
    start = bytes(content).index(VALUES.tobytes())
    content[start + 5] ^= 1
    (tmp_path / "w.npz").write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="a is damaged: Bad CRC-32"):
        opened(tmp_path / "w.npz").read("a")


def test_values_of_another_type_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.npz").write_bytes(npz_bytes({"step": np.arange(3)}))
    with pytest.raises(CheckpointError, match="step holds int64 values"):
        opened(tmp_path / "w.npz").read("step")
    (tmp_path / "objects.npz").write_bytes(npz_bytes({"o": np.array([{}], dtype=object)}))
    with pytest.raises(CheckpointError, match="o holds Python objects"):
        opened(tmp_path / "objects.npz")


def test_a_header_whose_length_begins_like_a_pickle_is_none(tmp_path: Path) -> None:
    """The length is little-endian: of a header of 128 bytes and multiples of 256 more, its first byte is 0x80."""
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors", metadata={"padding": "x" * 40})
    content = (tmp_path / "w.safetensors").read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")].rstrip()
    padded = header + b" " * (384 - len(header))
    (tmp_path / "w.safetensors").write_bytes((384).to_bytes(8, "little") + padded + content[-8:])
    assert (tmp_path / "w.safetensors").read_bytes()[:1] == b"\x80"
    assert torch.equal(opened(tmp_path / "w.safetensors").read("a"), torch.zeros(2))
