"""The manifest: deterministic, typed, closed to newer versions, and any flipped bit in it is noticed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from vitscale.checkpoint.manifest import FileEntry, Manifest, NewerVersionError, encode_manifest, parse_manifest, read_manifest
from vitscale.config import CheckpointError

MANIFEST = Manifest(
    step=1000,
    optimizer_steps=999,
    world_size=2,
    zero_stage=3,
    created="2026-01-02T03:04:05+00:00",
    versions={"torch": "2.11.0"},
    files=(FileEntry(name="rank-00000.safetensors", bytes=12, sha256="0" * 64), FileEntry(name="state.json", bytes=2, sha256="a" * 64)),
)


def _write(folder: Path, data: bytes) -> Path:
    (folder / "manifest.json").write_bytes(data)
    return folder


def test_it_reads_back_equal_and_encodes_to_the_same_bytes(tmp_path: Path) -> None:
    data = encode_manifest(MANIFEST)
    read = read_manifest(_write(tmp_path, data))
    assert read == MANIFEST
    assert encode_manifest(read) == data
    assert json.loads(data)["format"] == "vitscale-checkpoint"
    assert [entry.name for entry in read.rank_files()] == ["rank-00000.safetensors"]


def test_every_flipped_bit_is_noticed() -> None:
    data = encode_manifest(MANIFEST)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(CheckpointError):
            parse_manifest(bytes(flipped), where="here")


def test_every_truncation_is_noticed() -> None:
    data = encode_manifest(MANIFEST)
    for length in range(len(data)):
        with pytest.raises(CheckpointError):
            parse_manifest(data[:length], where="here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "written in version 2 of the checkpoint format.*install a newer vitscale"),
        ({"format": "something-else"}, "not a checkpoint of vitscale: it does not say format"),
        ({"step": 7}, "damaged, or edited by hand: its values do not match its sha256; put the file back"),
    ],
)
def test_what_it_cannot_use_is_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    values = json.loads(encode_manifest(MANIFEST)) | change
    with pytest.raises(CheckpointError, match=message):
        read_manifest(_write(tmp_path, json.dumps(values).encode()))


def test_another_version_is_a_newer_one_only_with_its_own_sha256(tmp_path: Path) -> None:
    values = json.loads(encode_manifest(MANIFEST)) | {"version": 3}
    with pytest.raises(CheckpointError, match="written in version 3") as flipped:
        read_manifest(_write(tmp_path, json.dumps(values).encode()))
    assert type(flipped.value) is CheckpointError
    del values["sha256"]
    values["sha256"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    with pytest.raises(NewerVersionError, match="written in version 3"):
        read_manifest(_write(tmp_path, json.dumps(values).encode()))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", "", ".hidden"])
def test_a_file_outside_the_folder_cannot_be_listed(tmp_path: Path, name: str) -> None:
    entry = MANIFEST.files[0].model_copy(update={"name": name})
    with pytest.raises(CheckpointError, match=r"files\.0\.name"):
        read_manifest(_write(tmp_path, encode_manifest(MANIFEST.model_copy(update={"files": (entry,)}))))


def test_a_folder_without_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        read_manifest(tmp_path)


def test_fields_of_a_later_vitscale_that_may_be_passed_over_are(tmp_path: Path) -> None:
    values = json.loads(encode_manifest(MANIFEST)) | {"colour": "red"}
    values["files"] = [entry | {"crc32": 5} for entry in values["files"]]
    del values["sha256"]
    values["sha256"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    assert read_manifest(_write(tmp_path, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())) == MANIFEST


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff\xfe", b"", b"null", b"[]"])
def test_what_is_no_manifest_at_all_is_one_paragraph(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\.json: (damaged: it is not JSON|not a checkpoint of vitscale)"):
        read_manifest(_write(tmp_path, data))
