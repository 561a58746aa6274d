"""Finding the newest whole checkpoint: damage of any kind is noticed before use and the reason is told."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.checkpoint.simulation import make_tensors, save_as
from vitscale.checkpoint.discover import checkpoints_folder, find_newest, hash_file, resolve_checkpoint, verify
from vitscale.checkpoint.manifest import NewerVersionError
from vitscale.config import CheckpointError

TENSORS = make_tensors(seed=1)
FILES = ["rank-00000.safetensors", "rank-00001.safetensors", "state.json", "config.yaml"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save_as(TENSORS, folder=tmp_path / "checkpoints", step=step, world_size=2)
    return tmp_path / "checkpoints"


def test_the_newest_whole_one_is_found(folder: Path) -> None:
    assert find_newest(folder).checkpoint == folder / "step-00000002"
    assert find_newest(folder).passed_over == ()


def test_an_empty_or_missing_directory_has_none(tmp_path: Path) -> None:
    assert find_newest(tmp_path).checkpoint is None
    assert find_newest(tmp_path / "missing").checkpoint is None


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found_before_use(folder: Path, name: str) -> None:
    path = folder / "step-00000002" / name
    data = path.read_bytes()
    for position in range(0, len(data), max(1, len(data) // 25)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        found = find_newest(folder)
        assert found.checkpoint == folder / "step-00000001"
        assert [entry.path.name for entry in found.passed_over] == ["step-00000002"]
        assert f"{name}: its content changed" in found.passed_over[0].reason
        assert find_newest(folder, deep=False).checkpoint == folder / "step-00000002"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("deep", [True, False])
def test_a_truncated_or_missing_file_is_found_before_use(folder: Path, name: str, deep: bool) -> None:
    path = folder / "step-00000002" / name
    data = path.read_bytes()
    for length in (0, 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert find_newest(folder, deep=deep).checkpoint == folder / "step-00000001"
    path.unlink()
    assert find_newest(folder, deep=deep).checkpoint == folder / "step-00000001"


def test_every_newer_folder_that_cannot_be_used_is_explained(folder: Path) -> None:
    save_as(TENSORS, folder=folder, step=3)
    manifest = folder / "step-00000003" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 99}))
    (folder / "step-00000004").mkdir()
    (folder / "step-00000005.tmp").mkdir()

    found = find_newest(folder)

    assert found.checkpoint == folder / "step-00000002"
    reasons = {entry.path.name: entry.reason for entry in found.passed_over}
    assert list(reasons) == ["step-00000005.tmp", "step-00000004", "step-00000003"]
    assert reasons["step-00000005.tmp"] == "its save did not finish"
    assert "has no manifest.json" in reasons["step-00000004"]
    assert "version 99" in reasons["step-00000003"]


def test_one_for_a_newer_vitscale_is_not_passed_over(folder: Path) -> None:
    path = folder / "step-00000002" / "manifest.json"
    values = json.loads(path.read_text()) | {"version": 2}
    del values["sha256"]
    values["sha256"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(values))
    for deep in (True, False):
        with pytest.raises(NewerVersionError, match=r"version 2 of the checkpoint format.*newer vitscale.*, or move its folder away"):
            find_newest(folder, deep=deep)
    save_as(TENSORS, folder=folder, step=3)
    assert find_newest(folder).checkpoint == folder / "step-00000003", "an older one matters no more"


def test_a_replaced_one_counts_while_its_successor_is_not_in_place(folder: Path) -> None:
    (folder / "step-00000002").rename(folder / "step-00000002.replaced")
    assert find_newest(folder).checkpoint == folder / "step-00000002.replaced"


def test_verify_returns_the_manifest(folder: Path) -> None:
    assert verify(folder / "step-00000002").step == 2


def test_a_path_may_be_a_run_its_checkpoints_or_one_of_them(folder: Path) -> None:
    for path in (folder.parent, folder, folder / "step-00000002"):
        assert resolve_checkpoint(path) == folder / "step-00000002"
    assert resolve_checkpoint(folder / "step-00000001") == folder / "step-00000001"


def test_a_named_checkpoint_that_is_damaged_has_no_stand_in(folder: Path) -> None:
    (folder / "step-00000002" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"state\.json: has 2 bytes"):
        resolve_checkpoint(folder / "step-00000002")


def test_a_path_without_checkpoints_is_refused_with_what_was_seen(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000007.tmp").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"no whole checkpoint here \(step-00000007\.tmp: its save did not finish\)"):
        resolve_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no whole checkpoint here; give a run directory"):
        resolve_checkpoint(tmp_path / "missing")


def test_progress_counts_every_byte_that_is_hashed(folder: Path) -> None:
    reports: list[int] = []
    manifest = verify(folder / "step-00000002", report=reports.append)
    assert reports == sorted(reports)
    assert reports[-1] == sum(entry.bytes for entry in manifest.files)


def test_the_checkpoints_of_a_run_or_of_a_folder_of_them(folder: Path) -> None:
    assert checkpoints_folder(folder) == folder
    assert checkpoints_folder(folder.parent) == folder


def test_a_hash_of_what_cannot_be_read_is_one_paragraph(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read: Is a directory"):
        hash_file(tmp_path)


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        find_newest(tmp_path)
