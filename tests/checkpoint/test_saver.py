"""Saving beside training, with simulated ranks and failures: all or none, the bits of the moment, and what fails costs that save only."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.checkpoint.simulation import FakeStore, SimulatedRanks, holds, make_tensors, open_saver, save_as
from tests.launcher import run_ranks
from vitscale.checkpoint import commit, fragment_file
from vitscale.checkpoint import saver as saver_module
from vitscale.checkpoint.discover import find_newest, verify
from vitscale.checkpoint.fragments import Fragment
from vitscale.checkpoint.manifest import FileEntry
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.checkpoint.saver import CheckpointSaver, SaveOutcome
from vitscale.config import CheckpointError

OLD, NEW = make_tensors(seed=1), make_tensors(seed=2)

_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

in_both_ways = pytest.mark.parametrize("in_background", [False, True], ids=["waiting", "background"])


def test_the_bytes_are_the_same_in_the_background_and_depend_on_the_values_only(tmp_path: Path) -> None:
    paths = [
        save_as(NEW, folder=tmp_path / name, step=1, world_size=3, zero_stage=3, in_background=in_background)
        for name, in_background in (("a", False), ("b", True), ("c", True))
    ]
    files = [verify(path).files for path in paths]
    assert files[0] == files[1] == files[2]
    assert len(files[0]) == 5


class _Train:
    """A run of one or more ranks in which the training thread goes on, and votes, as the loop does."""

    def __init__(self, folder: Path, *, world_size: int = 1, in_background: bool = True, **options: Any) -> None:
        self.folder = folder
        self.world_size = world_size
        self._ranks = SimulatedRanks(world_size)
        self._options = options | {"in_background": in_background}

    def run(self, body: Callable[["_Rank"], list[SaveOutcome]]) -> list[list[SaveOutcome]]:
        """What `body` returned on each rank; raises what any of them raised."""
        results = self._ranks.run(lambda rank: self._one(rank, body))
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def _one(self, rank: int, body: Callable[["_Rank"], list[SaveOutcome]]) -> list[SaveOutcome]:
        store = FakeStore(NEW, rank=rank, world_size=self.world_size, zero_stage=3)
        saver = open_saver(store, folder=self.folder, **self._options)
        try:
            return body(_Rank(rank, store, saver, self._ranks))
        finally:
            saver.close()


class _Rank:
    def __init__(self, rank: int, store: FakeStore, saver: CheckpointSaver, ranks: SimulatedRanks) -> None:
        self.rank = rank
        self.store = store
        self.saver = saver
        self._ranks = ranks

    def begin(self, step: int) -> list[SaveOutcome]:
        return self.saver.begin(step=step, state={"step": step}, config_text="")

    def poll(self) -> list[SaveOutcome]:
        return self.saver.poll(parts_written=self._ranks.smallest(self.saver.parts_written))

    def poll_until_told(self) -> list[SaveOutcome]:
        """Go on until rank 0 knows; all ranks stop at the same step."""
        outcomes: list[SaveOutcome] = []
        for _ in range(2000):
            outcomes += self.poll()
            if self._ranks.smallest(-len(outcomes)) < 0:
                return outcomes
            time.sleep(0.001)
        raise AssertionError("no save has ended")


def test_training_may_change_everything_as_soon_as_a_save_has_begun(tmp_path: Path) -> None:
    go_on = threading.Event()

    def held_back(*args: Any, **kwargs: Any) -> FileEntry:
        assert go_on.wait(20)
        return write_part(*args, **kwargs)

    write_part = commit.write_part

    def body(rank: _Rank) -> list[SaveOutcome]:
        rank.store.steps = 5
        assert rank.begin(1) == []
        for piece in rank.store.pieces:
            piece.values.fill_(torch.nan)
        rank.store.steps = 6
        assert rank.saver.parts_written == 0
        assert rank.poll() == []
        if rank.rank == 0:
            go_on.set()
        return rank.poll_until_told()

    with mock.patch("vitscale.checkpoint.saver.write_part", held_back):
        (told, *others) = _Train(tmp_path, world_size=3).run(body)
    assert [(outcome.step, outcome.error) for outcome in told] == [(1, None)]
    assert others == [[], []]
    assert holds(tmp_path / "step-00000001", NEW)
    assert verify(tmp_path / "step-00000001").optimizer_steps == 5


def test_nothing_is_committed_before_every_rank_has_written(tmp_path: Path) -> None:
    late = threading.Event()
    write_part = commit.write_part

    def rank_1_is_late(*args: Any, rank: int, **kwargs: Any) -> FileEntry:
        assert rank != 1 or late.wait(20)
        return write_part(*args, rank=rank, **kwargs)

    def body(rank: _Rank) -> list[SaveOutcome]:
        rank.begin(1)
        deadline = time.monotonic() + 20
        while rank.rank != 1 and rank.saver.parts_written == 0:
            assert time.monotonic() < deadline
        for _ in range(20):
            assert rank.poll() == []
        if rank.rank == 0:
            assert find_newest(tmp_path).checkpoint is None
            late.set()
        return rank.poll_until_told()

    with mock.patch("vitscale.checkpoint.saver.write_part", rank_1_is_late):
        told = _Train(tmp_path, world_size=3).run(body)[0]
    assert [outcome.error for outcome in told] == [None]
    assert holds(tmp_path / "step-00000001", NEW)


def test_a_save_waits_for_the_one_before_and_says_how_long(tmp_path: Path) -> None:
    write_part, waited = commit.write_part, 0.0

    def slow(*args: Any, **kwargs: Any) -> FileEntry:
        time.sleep(0.3)
        return write_part(*args, **kwargs)

    def body(rank: _Rank) -> list[SaveOutcome]:
        assert rank.begin(1) == []
        begun = time.perf_counter()
        first = rank.begin(2)
        assert [(outcome.step, outcome.error) for outcome in first] == [(1, None)]
        assert find_newest(tmp_path).checkpoint == tmp_path / "step-00000001"
        second = rank.saver.finish()
        nonlocal waited
        waited = time.perf_counter() - begun
        return first + second

    with mock.patch("vitscale.checkpoint.saver.write_part", slow):
        results = _Train(tmp_path, world_size=2).run(body)
    assert results[0] == results[1], "begin and finish tell every rank the same"
    first, second = results[0]
    assert first.seconds >= 0.3
    # The second waited for the first, and the end of the run for the second.
    assert second.seconds >= 0.75 * waited
    assert second.stall_seconds >= 0.75 * waited
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000001", "step-00000002"]


@in_both_ways
def test_a_long_write_shows_life_as_long_as_it_goes_on(tmp_path: Path, in_background: bool) -> None:
    """A watchdog must tell a slow disk from a dead one: each look that finds more of the file is a sign, others are none."""
    shown = threading.Semaphore(0)
    chunks = fragment_file._chunks

    def slow(fragments: list[Fragment]) -> Iterator[memoryview]:
        for number, chunk in enumerate(chunks(fragments)):
            if number in (1, 2):
                assert shown.acquire(timeout=20), "the file has grown, and nobody was told"
            if number == 2:
                time.sleep(0.1)
                assert not shown.acquire(blocking=False), "it has not grown any more"
            yield chunk

    grown = mock.patch.object(fragment_file, "DurableStream", _Unbuffered)
    with mock.patch.object(fragment_file, "_chunks", slow), mock.patch.object(saver_module, "_LOOK_SECONDS", 0.005), grown:
        (outcomes,) = _Train(tmp_path, in_background=in_background, show_life=shown.release).run(
            lambda rank: rank.begin(1) + rank.saver.finish()
        )
    assert [outcome.error for outcome in outcomes] == [None]


class _Unbuffered(fragment_file.DurableStream):
    def write(self, data: bytes | memoryview) -> None:
        super().write(data)
        self._file.flush()


def test_memory_is_used_again_for_the_next_save(tmp_path: Path) -> None:
    addresses: list[list[int]] = []
    write_part = commit.write_part

    def noting(*args: Any, fragments: list[Fragment], **kwargs: Any) -> FileEntry:
        addresses.append([fragment.values.data_ptr() for fragment in fragments])
        return write_part(*args, fragments=fragments, **kwargs)

    def body(rank: _Rank) -> list[SaveOutcome]:
        outcomes = rank.begin(1)
        for piece in rank.store.pieces:
            piece.values.add_(1.0)
        outcomes += rank.begin(2)
        return outcomes + rank.saver.finish()

    with mock.patch("vitscale.checkpoint.saver.write_part", noting):
        _Train(tmp_path).run(body)
    assert addresses[0] == addresses[1]
    assert holds(tmp_path / "step-00000001", NEW)
    assert holds(tmp_path / "step-00000002", {key: value + 1.0 for key, value in NEW.items()})


def _fails_on(rank: int, error: Exception) -> Callable[..., Any]:
    def write(path: Path, **options: Any) -> FileEntry:
        if path.name == f"rank-{rank:05d}.safetensors":
            path.write_bytes(b"what was written so far")
            raise error
        return write_fragments(path, **options)

    write_fragments = fragment_file.write_fragments
    return write


@in_both_ways
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_one_rank_with_a_full_disk_fails_the_save_on_all_and_training_goes_on(tmp_path: Path, failing: int, in_background: bool) -> None:
    save_as(OLD, folder=tmp_path, step=1, world_size=3)

    def body(rank: _Rank) -> list[SaveOutcome]:
        with mock.patch("vitscale.checkpoint.commit.write_fragments", _fails_on(failing, _FULL)) if rank.rank == 0 else mock.MagicMock():
            outcomes = rank.begin(2) + (rank.poll_until_told() if in_background else [])
            rank.poll()
        if rank.rank == 0:
            assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
        return outcomes + rank.begin(3) + rank.saver.finish()

    results = _Train(tmp_path, world_size=3, in_background=in_background).run(body)
    failed, saved = results[0]
    assert failed.error is not None
    assert f"checkpoint of step 2 could not be saved: rank-{failing:05d}.safetensors: No space left on device" in failed.error
    assert "\n" not in failed.error
    assert (failed.num_bytes, saved.step, saved.error) == (0, 3, None)
    assert holds(tmp_path / "step-00000001", OLD)
    assert holds(tmp_path / "step-00000003", NEW)


@in_both_ways
@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_failing_disk_never_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, in_background: bool) -> None:
    save_as(OLD, folder=tmp_path, step=1)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(CheckpointError, match=r"step 2 could not be saved.*Input/output error.*Older checkpoints are untouched"):
        save_as(NEW, folder=tmp_path, step=2, in_background=in_background)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_mistake_of_ours_in_the_thread_is_raised(tmp_path: Path) -> None:
    def body(rank: _Rank) -> list[SaveOutcome]:
        return rank.begin(1) + rank.saver.finish()

    broken = mock.patch("vitscale.checkpoint.commit.write_fragments", side_effect=ZeroDivisionError("ours"))
    with broken, pytest.raises(ZeroDivisionError, match="ours"):
        _Train(tmp_path).run(body)
    with mock.patch("vitscale.checkpoint.saver.commit", side_effect=ZeroDivisionError("ours")), pytest.raises(ZeroDivisionError):
        _Train(tmp_path).run(body)
    assert find_newest(tmp_path).checkpoint is None


def test_a_state_that_json_cannot_hold_is_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_as(NEW, folder=tmp_path, step=1, state={"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_between_the_parts_and_the_commit_leaves_nothing_committed(tmp_path: Path) -> None:
    save_as(OLD, folder=tmp_path, step=1, world_size=2)

    def body(rank: _Rank) -> list[SaveOutcome]:
        rank.begin(2)
        deadline = time.monotonic() + 20
        while rank.saver.parts_written == 0:
            assert time.monotonic() < deadline
        return []  # as when another rank has died: nobody polls any more

    _Train(tmp_path, world_size=2).run(body)
    found = find_newest(tmp_path)
    assert found.checkpoint == tmp_path / "step-00000001"
    assert [(entry.path.name[:18], entry.reason) for entry in found.passed_over] == [("step-00000002.tmp-", "its save did not finish")]
    assert holds(save_as(NEW, folder=tmp_path, step=2, world_size=2), NEW)


def test_closing_in_the_middle_of_a_write_gives_it_up(tmp_path: Path) -> None:
    writing = threading.Event()
    chunks = fragment_file._chunks

    def endless(fragments: list[Fragment]) -> Iterator[memoryview]:
        for chunk in chunks(fragments):
            while True:
                writing.set()
                yield chunk

    def body(rank: _Rank) -> list[SaveOutcome]:
        rank.begin(1)
        assert writing.wait(20)
        return []

    with mock.patch.object(fragment_file, "_chunks", endless):
        _Train(tmp_path).run(body)
    assert find_newest(tmp_path).checkpoint is None
    assert "checkpoint writer" not in {thread.name for thread in threading.enumerate()}


class _Recorded:
    """Notes what it is asked; deletes, or fails, as told."""

    def __init__(self, *, deletes: tuple[str, ...] = (), full: bool = False, broken: bool = False) -> None:
        self.asked: list[tuple[str, int]] = []
        self._deletes = deletes
        self._full = full
        self._broken = broken

    def make_room(self, folder: Path, *, needed_bytes: int) -> list[Path]:
        self.asked.append(("make_room", needed_bytes))
        if self._full:
            raise CheckpointError(f"{folder}: {needed_bytes} bytes do not fit")
        return [folder / name for name in self._deletes[:1]]

    def prune(self, folder: Path, *, saved: int) -> list[Path]:
        self.asked.append(("prune", saved))
        assert find_newest(folder).checkpoint == folder / f"step-{saved:08d}"
        if self._broken:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder / "step-00000001"))
        return [folder / name for name in self._deletes[1:]]


def test_room_is_made_for_all_ranks_before_and_too_old_ones_go_after(tmp_path: Path) -> None:
    retention = _Recorded(deletes=("step-00000001", "step-00000002"))

    def body(rank: _Rank) -> list[SaveOutcome]:
        return rank.begin(4) + rank.saver.finish()

    (outcome,) = _Train(tmp_path, world_size=2, retention=retention).run(body)[1]
    elements = sum(value.numel() for value in NEW.values())
    assert retention.asked == [("make_room", elements * 4), ("prune", 4)]
    assert outcome.deleted == ("step-00000001", "step-00000002")
    assert outcome.num_bytes == sum(entry.bytes for entry in verify(tmp_path / "step-00000004").files)


@in_both_ways
def test_a_save_that_does_not_fit_is_not_begun(tmp_path: Path, in_background: bool) -> None:
    def body(rank: _Rank) -> list[SaveOutcome]:
        outcomes = rank.begin(1)
        assert rank.saver.parts_written == 0
        assert rank.poll() == rank.saver.finish() == []
        return outcomes

    results = _Train(tmp_path, world_size=2, retention=_Recorded(full=True), in_background=in_background).run(body)
    for (outcome,) in results:
        assert "step 1 could not be saved:" in str(outcome.error)
        assert "bytes do not fit" in str(outcome.error)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_committed_even_if_older_ones_cannot_be_deleted(tmp_path: Path) -> None:
    (outcome,) = _Train(tmp_path, retention=_Recorded(broken=True)).run(lambda rank: rank.begin(1) + rank.saver.finish())[0]
    assert outcome.error is None
    assert "Permission denied" in str(outcome.deletion_error)
    assert holds(tmp_path / "step-00000001", NEW)


def test_an_old_owner_neither_commits_nor_touches_what_the_new_one_writes(tmp_path: Path) -> None:
    taken_over = threading.Event()

    def check() -> None:
        if taken_over.is_set():
            raise CheckpointError("host-b has taken over")

    def body(rank: _Rank) -> list[SaveOutcome]:
        outcomes = rank.begin(1)
        if rank.rank == 0:
            taken_over.set()
            for step in (1, 2):
                (tmp_path / f"step-0000000{step}.tmp").mkdir(exist_ok=True)
                (tmp_path / f"step-0000000{step}.tmp" / "of the new owner").touch()
        rank.poll()
        outcomes += rank.saver.finish()
        return outcomes + rank.begin(2)

    for outcomes in _Train(tmp_path, world_size=2, check_owner=check).run(body):
        assert [outcome.step for outcome in outcomes] == [1, 2]
        assert all("host-b has taken over" in str(outcome.error) for outcome in outcomes)
    assert find_newest(tmp_path).checkpoint is None
    assert all((tmp_path / f"step-0000000{step}.tmp" / "of the new owner").exists() for step in (1, 2))


def test_a_group_that_does_not_know_yet_that_it_is_shut_out_does_no_harm_to_the_save_of_the_new_one(tmp_path: Path) -> None:
    """The old group goes on to write its part when the new one has begun to save the same step."""
    go_on = {"old": threading.Event(), "new": threading.Event()}
    groups = iter(go_on.values())

    def held_back(*args: Any, **kwargs: Any) -> FileEntry:
        assert next(groups).wait(20)
        return write_part(*args, **kwargs)

    write_part = commit.write_part

    def body(old: _Rank) -> list[SaveOutcome]:
        new = open_saver(old.store, folder=tmp_path, in_background=True)
        outcomes = []
        for group, saver in (("old", old.saver), ("new", new)):
            saver.begin(step=1, state={"step": 1, "of": group}, config_text="")
        for group, saver in (("old", old.saver), ("new", new)):
            go_on[group].set()
            outcomes += saver.finish()
        new.close()
        return outcomes

    with mock.patch("vitscale.checkpoint.saver.write_part", held_back):
        ((of_old, of_new),) = _Train(tmp_path).run(body)
    assert "No such file" in str(of_old.error), "its folder is gone, and it has no way to the other one"
    assert of_new.error is None
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert CheckpointReader(tmp_path / "step-00000001").state["of"] == "new"


@pytest.mark.dist
def test_real_processes_save_beside_training_and_restore(tmp_path: Path) -> None:
    reports = run_ranks(Path(__file__).with_name("rank_script.py"), tmp_path)
    for report in reports:
        assert report["restored"]
        assert report["steps"] == 5
        assert "step 6 could not be saved: rank-00001.safetensors: No space left on device" in report["error"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000005"]
