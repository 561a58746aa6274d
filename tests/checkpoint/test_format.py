"""docs/checkpoint.md: its reader reads a real checkpoint without vitscale, refuses a damaged one, and no field is left out."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from tests.checkpoint.simulation import make_tensors, save_as
from vitscale.checkpoint.config import CheckpointConfig
from vitscale.checkpoint.fragments import Kind
from vitscale.checkpoint.layout import STATE
from vitscale.checkpoint.manifest import FORMAT, VERSION, FileEntry, Manifest, encode_manifest, read_manifest

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "checkpoint.md").read_text(encoding="utf-8")
TENSORS = make_tensors(seed=3, shapes={"backbone.a": (4, 6), "head.b": (3,), "scale": ()}, kinds=get_args(Kind))

Reader = Callable[..., dict[str, np.ndarray[Any, Any]]]


@pytest.fixture(scope="module")
def reader() -> Reader:
    """The function of the document, in a namespace of its own."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert "vitscale" not in "".join(re.findall(r"^(?:import|from) .*$", code, flags=re.MULTILINE))
    assert len(code.splitlines()) <= 26
    namespace: dict[str, Any] = {}
    exec(compile(code, "docs/checkpoint.md", "exec"), namespace)
    read: Reader = namespace["read_checkpoint"]
    return read


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_documents_reader_reads_what_was_saved(tmp_path: Path, reader: Reader, zero_stage: int, kind: Kind) -> None:
    path = save_as(TENSORS, folder=tmp_path, step=1, world_size=3, zero_stage=zero_stage)
    read = reader(path, kind=kind)
    expected = {name: tensor.numpy() for (name, its_kind), tensor in TENSORS.items() if its_kind == kind}
    assert read.keys() == expected.keys()
    for name, values in expected.items():
        assert read[name].shape == values.shape
        assert read[name].dtype == np.float32
        assert np.array_equal(read[name], values)


@pytest.mark.parametrize("name", ["rank-00001.safetensors", "config.yaml", "manifest.json"])
def test_the_documents_reader_refuses_a_damaged_one(tmp_path: Path, reader: Reader, name: str) -> None:
    path = save_as(TENSORS, folder=tmp_path, step=1, world_size=2) / name
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"step": 1', b'"step": 2') if name == "manifest.json" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(AssertionError, match="was changed"):
        reader(path.parent)


def test_the_documents_reader_refuses_a_gap(tmp_path: Path, reader: Reader) -> None:
    path = save_as(TENSORS, folder=tmp_path, step=1, world_size=2)
    manifest = read_manifest(path)
    fewer = tuple(entry for entry in manifest.files if entry.name != "rank-00001.safetensors")
    (path / "manifest.json").write_bytes(encode_manifest(manifest.model_copy(update={"files": fewer})))
    with pytest.raises(AssertionError, match="a gap or an overlap"):
        reader(path)


def test_every_field_kind_and_setting_is_documented(tmp_path: Path) -> None:
    path = save_as(TENSORS, folder=tmp_path, step=1)
    manifest = json.loads((path / "manifest.json").read_text())
    documented = set(re.findall(r"`([^`]+)`", TEXT))
    assert set(manifest) <= documented
    assert {*FileEntry.model_fields} - {"name"} <= documented
    assert {*Manifest.model_fields} <= documented
    assert set(get_args(Kind)) <= documented
    assert f"`{FORMAT}`, {VERSION} |" in TEXT
    assert {file["name"] for file in manifest["files"]} <= set(re.findall(r"[\w.-]+\.\w+", TEXT))
    assert f"### {STATE}" in TEXT
    assert {"every_steps", "keep", "keep_every_steps", "upload_to"} <= documented & set(CheckpointConfig.model_fields)


def test_the_manifest_is_laid_out_as_documented(tmp_path: Path) -> None:
    data = (save_as(TENSORS, folder=tmp_path, step=1) / "manifest.json").read_text()
    assert data == json.dumps(json.loads(data), indent=1, sort_keys=True) + "\n"
