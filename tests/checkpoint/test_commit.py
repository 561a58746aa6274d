"""A save on disk: everything is there before its name is, it is checked first, and only the owner commits."""

import json
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.checkpoint.simulation import FakeStore, Tensors, make_tensors, save_as
from vitscale.checkpoint.commit import SaveContent, commit, encode_state, prepare, write_part
from vitscale.checkpoint.discover import find_newest, verify
from vitscale.checkpoint.manifest import FileEntry
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.config import CheckpointError

TENSORS = make_tensors(seed=1)
CONTENT = SaveContent(step=3, optimizer_steps=2, zero_stage=3, state_text=encode_state({"step": 3}), config_text="seed: 1\n")


def _write_all(partial: Path, *, world_size: int = 2, of: int | None = None, tensors: Tensors = TENSORS) -> list[FileEntry]:
    """The parts of the first `world_size` ranks of `of`."""
    prepare(partial)
    stores = [FakeStore(tensors, rank=rank, world_size=of or world_size, zero_stage=3) for rank in range(world_size)]
    return [write_part(partial, rank=rank, fragments=store.owned(), given_up=threading.Event()) for rank, store in enumerate(stores)]


def _commit(partial: Path, parts: Sequence[FileEntry], *, check_owner: Callable[[], None] = lambda: None) -> int:
    return commit(partial, content=CONTENT, parts=parts, check_owner=check_owner)


def test_the_committed_folder_holds_what_was_given(tmp_path: Path) -> None:
    partial = tmp_path / "step-00000003.tmp"
    size = _commit(partial, _write_all(partial))
    path = tmp_path / "step-00000003"
    assert list(tmp_path.iterdir()) == [path]
    reader = CheckpointReader(path)
    assert (reader.state, reader.config_text) == ({"step": 3}, "seed: 1\n")
    assert (reader.manifest.step, reader.manifest.optimizer_steps) == (3, 2)
    assert (reader.manifest.world_size, reader.manifest.zero_stage) == (2, 3)
    assert size == sum(file.stat().st_size for file in path.iterdir() if file.name != "manifest.json")
    verify(path)


def test_everything_is_on_disk_before_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename
    path_of: Callable[[int], str] = lambda descriptor: os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append(path_of(descriptor)), fsync(descriptor)))
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append(f"rename {a.name} {b.name}"), rename(a, b)))

    monkeypatch.setattr(secrets, "token_hex", lambda _: "a1")

    save_as(TENSORS, folder=tmp_path / "c", step=1)

    partial = "c/step-00000001.tmp-a1"
    files = ["rank-00000.safetensors", "state.json", "config.yaml", "manifest.json"]
    assert done == [".", "c", *(f"{partial}/{name}" for name in files), partial, "rename step-00000001.tmp-a1 step-00000001", "c"]


def test_a_folder_that_is_there_is_left_to_who_made_it(tmp_path: Path) -> None:
    partial = tmp_path / "c" / "step-00000003.tmp"
    prepare(partial)
    (partial / "of somebody else").touch()
    with pytest.raises(CheckpointError, match="File exists"):
        prepare(partial)
    assert (partial / "of somebody else").exists()


def test_leftovers_of_a_larger_world_do_not_get_in(tmp_path: Path) -> None:
    stale = tmp_path / "step-00000003.tmp"
    stale.mkdir()
    (stale / "rank-00004.safetensors").write_bytes(b"stale")
    path = save_as(TENSORS, folder=tmp_path, step=3, world_size=2)
    assert sorted(entry.name for entry in path.iterdir()) == [
        "config.yaml",
        "manifest.json",
        "rank-00000.safetensors",
        "rank-00001.safetensors",
        "state.json",
    ]
    verify(path)


def test_the_owner_is_checked_before_the_manifest_and_again_before_the_rename(tmp_path: Path) -> None:
    partial = tmp_path / "step-00000003.tmp"
    parts = _write_all(partial)
    seen: list[bool] = []
    _commit(partial, parts, check_owner=lambda: seen.append((partial / "manifest.json").exists()))
    assert seen == [False, True]


@pytest.mark.parametrize("calls", [1, 2])
def test_nothing_is_committed_for_another_owner(tmp_path: Path, calls: int) -> None:
    partial, left = tmp_path / "step-00000003.tmp", calls

    def check() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise CheckpointError("host-b took over")

    with pytest.raises(CheckpointError, match="host-b took over"):
        _commit(partial, _write_all(partial), check_owner=check)
    assert find_newest(tmp_path).checkpoint is None
    assert (partial / "manifest.json").exists() == (calls == 2)


def test_pieces_that_leave_a_gap_are_not_committed(tmp_path: Path) -> None:
    partial = tmp_path / "step-00000003.tmp"
    with pytest.raises(CheckpointError, match=r"elements \[8, 15\) of backbone\.a \(weight\) are missing"):
        _commit(partial, _write_all(partial, world_size=1, of=2))
    assert find_newest(tmp_path).checkpoint is None


def test_a_part_that_rank_0_does_not_see_whole_is_not_committed(tmp_path: Path) -> None:
    # As where the nodes do not share the directory, or one of them has lost its last writes.
    partial = tmp_path / "step-00000003.tmp"
    parts = _write_all(partial)
    with (partial / parts[1].name).open("r+b") as file:
        file.truncate(parts[1].bytes - 1)
    with pytest.raises(CheckpointError, match=r"rank-00001\.safetensors: has \d+ bytes where"):
        _commit(partial, parts)
    (partial / parts[1].name).unlink()
    with pytest.raises(CheckpointError, match=r"rank-00001\.safetensors: No such file"):
        _commit(partial, parts)


def test_a_part_that_is_given_up_says_so(tmp_path: Path) -> None:
    given_up = threading.Event()
    given_up.set()
    store = FakeStore(TENSORS, rank=0, world_size=1, zero_stage=1)
    with pytest.raises(CheckpointError, match=r"rank-00000\.safetensors: given up, since training has ended"):
        write_part(tmp_path, rank=0, fragments=store.owned(), given_up=given_up)


def test_the_text_of_a_state_is_strict_json_in_a_fixed_order() -> None:
    assert json.loads(encode_state({"b": [1, None], "a": {"c": 0.5}})) == {"a": {"c": 0.5}, "b": [1, None]}
    assert encode_state({"b": 1, "a": 2}) == encode_state({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_state({"loss": float("nan")})
