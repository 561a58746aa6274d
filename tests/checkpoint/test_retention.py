"""Retention: the newest complete checkpoint is never deleted, whatever else lies around."""

from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.checkpoint.simulation import make_tensors, save_as
from vitscale.checkpoint.discover import find_newest
from vitscale.checkpoint.retention import prune, steps_to_delete

TENSORS = make_tensors(seed=1, shapes={"a": (2,)}, kinds=("weight",))


@pytest.mark.parametrize(
    ("steps", "keep", "deleted"),
    [([], 3, []), ([5], 1, []), ([1, 2, 3], 3, []), ([30, 10, 20], 1, [10, 20]), ([4, 1, 3, 2], 3, [1])],
)
def test_the_oldest_beyond_keep_go(steps: list[int], keep: int, deleted: list[int]) -> None:
    assert steps_to_delete(steps, keep=keep) == deleted


@hypothesis.given(st.sets(st.integers(0, 100)), st.integers(1, 6))
def test_what_stays_is_the_newest(steps: set[int], keep: int) -> None:
    deleted = steps_to_delete(steps, keep=keep)
    stays = steps - set(deleted)
    assert len(stays) == min(keep, len(steps))
    assert not deleted or max(deleted) < min(stays)


def test_keep_nothing_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        steps_to_delete([1], keep=0)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_prune_keeps_the_newest_and_returns_what_it_deleted(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_as(TENSORS, folder=tmp_path, step=step)
    assert [path.name for path in prune(tmp_path, keep=2, saved=4)] == ["step-00000001", "step-00000002"]
    assert _names(tmp_path) == ["step-00000003", "step-00000004"]
    assert prune(tmp_path, keep=2, saved=4) == []


def test_damaged_newer_ones_do_not_count_and_stay_for_inspection(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_as(TENSORS, folder=tmp_path, step=step)
    (tmp_path / "step-00000003" / "state.json").write_text("torn")
    (tmp_path / "step-00000004").mkdir()
    prune(tmp_path, keep=1, saved=2)
    assert _names(tmp_path) == ["step-00000002", "step-00000003", "step-00000004"]
    assert find_newest(tmp_path).checkpoint == tmp_path / "step-00000002"


def test_one_of_the_right_size_that_was_passed_over_does_not_push_out_what_is_good(tmp_path: Path) -> None:
    for step in (1, 2, 4):
        save_as(TENSORS, folder=tmp_path, step=step)
    damaged = tmp_path / "step-00000004" / "rank-00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert find_newest(tmp_path).checkpoint == tmp_path / "step-00000002"
    save_as(TENSORS, folder=tmp_path, step=3)  # the run went on from 2
    prune(tmp_path, keep=1, saved=3)
    assert _names(tmp_path) == ["step-00000003", "step-00000004"]
    assert find_newest(tmp_path).checkpoint == tmp_path / "step-00000003"


def test_nothing_is_deleted_where_nothing_is_whole(tmp_path: Path) -> None:
    for name in ("step-00000001", "step-00000002.tmp"):
        (tmp_path / name).mkdir()
    assert prune(tmp_path, keep=1, saved=3) == []
    assert _names(tmp_path) == ["step-00000001", "step-00000002.tmp"]


def test_old_leftovers_go_and_a_save_under_way_stays(tmp_path: Path) -> None:
    for step in (2, 3):
        save_as(TENSORS, folder=tmp_path, step=step)
    for name in ("step-00000001.tmp", "step-00000003.tmp", "step-00000004.tmp", "step-00000001", "step-00000001.replaced"):
        (tmp_path / name).mkdir()
    prune(tmp_path, keep=5, saved=3)
    assert _names(tmp_path) == ["step-00000002", "step-00000003", "step-00000004.tmp"]


def test_a_half_deleted_checkpoint_looks_unfinished_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save_as(TENSORS, folder=tmp_path, step=step)
    monkeypatch.setattr("vitscale.checkpoint.retention.shutil.rmtree", lambda *_, **__: None)
    prune(tmp_path, keep=1, saved=2)
    assert _names(tmp_path) == ["step-00000001.tmp", "step-00000002"]
