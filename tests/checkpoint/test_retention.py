"""Retention: the newest complete checkpoint is never deleted, whatever else lies around."""

import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.checkpoint.simulation import make_tensors, save_as
from vitscale.checkpoint.config import CheckpointConfig, KeepBestConfig
from vitscale.checkpoint.discover import find_newest
from vitscale.checkpoint.retention import RetentionPolicy, read_scores
from vitscale.config import CheckpointError

TENSORS = make_tensors(seed=1, shapes={"a": (2,)}, kinds=("weight",))


MAXIMUM = KeepBestConfig(metric="eval/test/top1")
MINIMUM = KeepBestConfig(metric="eval/test/loss", mode="min", count=2)
SCORES = {10: 0.5, 20: 0.9, 30: 0.9, 40: 0.1, 50: float("nan")}


def _outdated(steps: Collection[int], *, scores: Mapping[int, float] | None = None, **rule: Any) -> list[int]:
    return RetentionPolicy(**rule, scores=lambda: scores or {}).outdated(steps)


@pytest.mark.parametrize(
    ("steps", "rule", "deleted"),
    [
        ([], {"keep": 3}, []),
        ([5], {"keep": 1}, []),
        ([1, 2, 3], {"keep": 3}, []),
        ([30, 10, 20], {"keep": 1}, [10, 20]),
        ([4, 1, 3, 2], {"keep": 3}, [1]),
        ([10, 20, 30, 40, 50], {"keep": 1, "keep_every_steps": 20}, [10, 30]),
        ([0, 10, 20], {"keep": 1, "keep_every_steps": 1000}, [10]),
        ([10, 20, 30, 40, 50], {"keep": 1, "keep_best": MAXIMUM, "scores": SCORES}, [10, 20, 40]),
        ([10, 20, 40, 50], {"keep": 1, "keep_best": MAXIMUM, "scores": SCORES}, [10, 40]),
        ([10, 20, 30, 40, 50], {"keep": 1, "keep_best": MINIMUM, "scores": SCORES}, [20, 30]),
        ([10, 20, 30, 40, 50], {"keep": 2, "keep_best": MINIMUM, "scores": {}}, [10, 20, 30]),
        ([10, 20, 30, 40, 50], {"keep": 2, "keep_best": MAXIMUM, "keep_every_steps": 20, "scores": {10: 1.0, 11: 2.0}}, [30]),
    ],
)
def test_what_nothing_keeps_goes(steps: list[int], rule: dict[str, Any], deleted: list[int]) -> None:
    assert _outdated(steps, **rule) == deleted


@hypothesis.given(
    steps=st.sets(st.integers(0, 100)),
    keep=st.integers(1, 6),
    every=st.none() | st.integers(1, 20),
    best=st.none() | st.builds(KeepBestConfig, metric=st.just("eval/a/b"), mode=st.sampled_from(["max", "min"]), count=st.integers(1, 3)),
    scores=st.dictionaries(st.integers(0, 100), st.floats(), max_size=20),
)
def test_all_that_is_promised_stays(
    steps: set[int], keep: int, every: int | None, best: KeepBestConfig | None, scores: dict[int, float]
) -> None:
    stays = steps - set(_outdated(steps, keep=keep, keep_every_steps=every, keep_best=best, scores=scores))
    assert set(sorted(steps)[-keep:]) <= stays
    assert {step for step in steps if every and step % every == 0} <= stays
    measured = [scores[step] for step in steps if math.isfinite(scores.get(step, math.nan))]
    if best is not None:
        finest = sorted(measured, reverse=best.mode == "max")[: best.count]
        kept = sorted((scores[step] for step in stays if scores.get(step) in finest), reverse=best.mode == "max")
        assert kept[: best.count] == finest
    if every is None and best is None:
        assert len(stays) == min(keep, len(steps))


def test_keep_nothing_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        RetentionPolicy(keep=0)


def test_scores_come_from_the_log_of_metrics(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert read_scores(log, metric="eval/test/top1") == {}
    records = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "eval/test/top1": 0.25},
        {"step": 4, "eval/test/top1": 0.5, "eval/test/top1_more": 9},
        {"step": 6, "eval/test/top1_more": 7.0},
        {"step": 4, "eval/test/top1": 0.75},
    ]
    log.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 8, "eval/test/top1": 0.')
    assert read_scores(log, metric="eval/test/top1") == {2: 0.25, 4: 0.75}


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_prune_keeps_the_newest_and_returns_what_it_deleted(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_as(TENSORS, folder=tmp_path, step=step)
    assert [path.name for path in RetentionPolicy(keep=2).prune(tmp_path, saved=4)] == ["step-00000001", "step-00000002"]
    assert _names(tmp_path) == ["step-00000003", "step-00000004"]
    assert RetentionPolicy(keep=2).prune(tmp_path, saved=4) == []


def test_damaged_newer_ones_do_not_count_and_stay_for_inspection(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_as(TENSORS, folder=tmp_path, step=step)
    (tmp_path / "step-00000003" / "state.json").write_text("torn")
    (tmp_path / "step-00000004").mkdir()
    RetentionPolicy(keep=1).prune(tmp_path, saved=2)
    assert _names(tmp_path) == ["step-00000002", "step-00000003", "step-00000004"]
    assert find_newest(tmp_path).checkpoint == tmp_path / "step-00000002"


def test_one_of_the_right_size_that_was_passed_over_does_not_push_out_what_is_good(tmp_path: Path) -> None:
    for step in (1, 2, 4):
        save_as(TENSORS, folder=tmp_path, step=step)
    damaged = tmp_path / "step-00000004" / "rank-00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert find_newest(tmp_path).checkpoint == tmp_path / "step-00000002"
    save_as(TENSORS, folder=tmp_path, step=3)  # the run went on from 2
    RetentionPolicy(keep=1).prune(tmp_path, saved=3)
    assert _names(tmp_path) == ["step-00000003", "step-00000004"]
    assert find_newest(tmp_path).checkpoint == tmp_path / "step-00000003"


def test_nothing_is_deleted_where_nothing_is_whole(tmp_path: Path) -> None:
    for name in ("step-00000001", "step-00000002.tmp"):
        (tmp_path / name).mkdir()
    assert RetentionPolicy(keep=1).prune(tmp_path, saved=3) == []
    assert _names(tmp_path) == ["step-00000001", "step-00000002.tmp"]


def test_old_leftovers_go_and_a_save_under_way_stays(tmp_path: Path) -> None:
    for step in (2, 3):
        save_as(TENSORS, folder=tmp_path, step=step)
    for name in ("step-00000001.tmp", "step-00000003.tmp", "step-00000004.tmp", "step-00000001", "step-00000001.replaced"):
        (tmp_path / name).mkdir()
    RetentionPolicy(keep=5).prune(tmp_path, saved=3)
    assert _names(tmp_path) == ["step-00000002", "step-00000003", "step-00000004.tmp"]


def test_a_half_deleted_checkpoint_looks_unfinished_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save_as(TENSORS, folder=tmp_path, step=step)
    monkeypatch.setattr("vitscale.checkpoint.retention.shutil.rmtree", lambda *_, **__: None)
    RetentionPolicy(keep=1).prune(tmp_path, saved=2)
    assert _names(tmp_path) == ["step-00000001.tmp", "step-00000002"]


def _save_steps(folder: Path, *steps: int) -> None:
    for step in steps:
        save_as(TENSORS, folder=folder, step=step)


def test_the_policy_keeps_what_the_configuration_asks_for(tmp_path: Path) -> None:
    _save_steps(tmp_path, 10, 20, 30, 40, 50)
    config = CheckpointConfig(keep=1, keep_every_steps=40, keep_best=MAXIMUM)
    policy = RetentionPolicy.from_config(config, scores=lambda: {10: 0.1, 20: 0.9})
    assert [path.name for path in policy.prune(tmp_path, saved=50)] == ["step-00000010", "step-00000030"]
    assert _names(tmp_path) == ["step-00000020", "step-00000040", "step-00000050"]
    assert policy.reasons([20, 30, 40, 50]) == {20: ("best eval/test/top1",), 30: (), 40: ("every 40 steps",), 50: ("the newest",)}


def test_a_damaged_one_goes_though_an_older_one_stays_for_ever(tmp_path: Path) -> None:
    _save_steps(tmp_path, 10, 12, 14, 16)
    (tmp_path / "step-00000012" / "state.json").write_text("torn")
    RetentionPolicy(keep=1, keep_every_steps=10).prune(tmp_path, saved=16)
    assert _names(tmp_path) == ["step-00000010", "step-00000016"]


def test_what_is_being_uploaded_stays(tmp_path: Path) -> None:
    _save_steps(tmp_path, 1, 2, 3)
    pinned = {1}
    policy = RetentionPolicy(keep=1, pinned=lambda: pinned)
    policy.prune(tmp_path, saved=3)
    assert _names(tmp_path) == ["step-00000001", "step-00000003"]
    pinned.clear()
    policy.prune(tmp_path, saved=3)
    assert _names(tmp_path) == ["step-00000003"]


def test_a_disk_that_refuses_to_delete_is_one_paragraph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save_steps(tmp_path, 1, 2)

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("vitscale.checkpoint.retention.os.rename", refuse)
    with pytest.raises(CheckpointError, match="step-00000001: Permission denied"):
        RetentionPolicy(keep=1).prune(tmp_path, saved=2)


class Disk:
    """A disk of `free` bytes beside what lies in `folder` now; a save is 1000 bytes, and so is what is deleted of one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, free: int) -> None:
        before = len(_names(folder))
        monkeypatch.setattr("vitscale.checkpoint.retention.free_bytes", lambda _: free + 1000 * (before - len(_names(folder))))
        monkeypatch.setattr("vitscale.checkpoint.retention._allocated_bytes", lambda _: 1000)
        monkeypatch.setattr("vitscale.checkpoint.retention._MARGIN_BYTES", 100)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Disk]:
    return lambda free: Disk(tmp_path, monkeypatch, free=free)


@pytest.mark.parametrize(
    ("free", "deleted"),
    [
        (1100, []),
        (1099, ["step-00000005.tmp"]),
        (99, ["step-00000005.tmp", "step-00000001"]),
        (0, ["step-00000005.tmp", "step-00000001"]),
        (-901, ["step-00000005.tmp", "step-00000001", "step-00000003"]),
    ],
)
def test_room_is_made_in_the_documented_order(tmp_path: Path, disk: Callable[[int], Disk], free: int, deleted: list[str]) -> None:
    _save_steps(tmp_path, 1, 2, 3, 4)
    (tmp_path / "step-00000005.tmp").mkdir()
    disk(free)
    # 1 goes after the next save anyway; 2 is kept for ever; 3 is only one of the two newest; 4 is the newest.
    policy = RetentionPolicy(keep=2, keep_every_steps=2, resumed_from=4)
    assert [path.name for path in policy.make_room(tmp_path, needed_bytes=1000)] == deleted
    assert {"step-00000002", "step-00000004"} <= set(_names(tmp_path))


def test_where_not_enough_may_go_nothing_goes(tmp_path: Path, disk: Callable[[int], Disk]) -> None:
    _save_steps(tmp_path, 1, 2, 3, 4)
    before = _names(tmp_path)
    disk(-1901)
    with pytest.raises(
        CheckpointError, match=r"needs 1,100 bytes .* and -1,901 bytes .* \(2 folders, 2,000 bytes .* not enough, so nothing"
    ):
        RetentionPolicy(keep=3, keep_every_steps=2, resumed_from=4).make_room(tmp_path, needed_bytes=1000)
    assert _names(tmp_path) == before


def test_the_best_the_pinned_and_the_resumed_from_never_make_room(tmp_path: Path, disk: Callable[[int], Disk]) -> None:
    _save_steps(tmp_path, 1, 2, 3, 4)
    disk(0)
    # The run goes on from 3: 4 has the right sizes, and was passed over.
    policy = RetentionPolicy(keep=3, keep_best=MAXIMUM, scores=lambda: {1: 0.5}, pinned=lambda: [2], resumed_from=3)
    with pytest.raises(CheckpointError, match=r"\(0 folders"):
        policy.make_room(tmp_path, needed_bytes=1000)
    assert len(_names(tmp_path)) == 4


def test_of_a_run_that_has_saved_nothing_only_leftovers_go(tmp_path: Path, disk: Callable[[int], Disk]) -> None:
    _save_steps(tmp_path, 1, 2)
    (tmp_path / "step-00000001.tmp").mkdir()
    disk(500)
    assert [path.name for path in RetentionPolicy(keep=1).make_room(tmp_path, needed_bytes=1000)] == ["step-00000001.tmp"]
    assert _names(tmp_path) == ["step-00000001", "step-00000002"]


def test_after_a_save_that_one_is_the_newest(tmp_path: Path, disk: Callable[[int], Disk]) -> None:
    _save_steps(tmp_path, 1)
    policy = RetentionPolicy(keep=3, resumed_from=1)
    _save_steps(tmp_path, 2)
    policy.prune(tmp_path, saved=2)
    disk(200)
    assert [path.name for path in policy.make_room(tmp_path, needed_bytes=1000)] == ["step-00000001"]


def test_the_real_disk_is_asked(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    policy = RetentionPolicy(keep=1)
    assert policy.make_room(tmp_path / "not" / "there" / "yet", needed_bytes=free // 4) == []
    with pytest.raises(CheckpointError, match="are free there"):
        policy.make_room(tmp_path / "not" / "there" / "yet", needed_bytes=free * 2)
    assert os.listdir(tmp_path) == []
