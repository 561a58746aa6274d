"""Saving: all ranks or none, and a process killed at any point leaves the newest complete checkpoint as it was."""

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.checkpoint.simulation import FakeStore, SimulatedRanks, Tensors, make_tensors, save_as
from tests.launcher import run_ranks
from vitscale.checkpoint import fragment_file, save
from vitscale.checkpoint.discover import find_newest, verify
from vitscale.checkpoint.fragments import Fragment
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.checkpoint.save import save_checkpoint
from vitscale.config import CheckpointError

OLD, NEW = make_tensors(seed=1), make_tensors(seed=2)
SMALL_OLD, SMALL_NEW = (make_tensors(seed=seed, shapes={"a": (2, 3), "b": (4,)}, kinds=("weight",)) for seed in (1, 2))

_TOUCHING_DISK = ("fsync", "rename", "mkdir", "unlink", "rmdir", "open")


def _holds(path: Path, tensors: Tensors) -> bool:
    verify(path)
    reader = CheckpointReader(path)
    return all(torch.equal(reader.read_full(name, kind=kind), value) for (name, kind), value in tensors.items())


def _in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; return its wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    return os.waitpid(child, 0)[1]


@contextlib.contextmanager
def _killed_at(operation: int) -> Iterator[None]:
    """SIGKILL this process before its n-th operation on the disk; chunks of data count as operations too."""
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    def ticking(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (tick(), original(*args, **kwargs))[1]

    def ticking_chunks(fragments: list[Fragment]) -> Iterator[memoryview]:
        for chunk in chunks(fragments):
            tick()
            yield chunk

    chunks = fragment_file._chunks
    with contextlib.ExitStack() as stack:
        for name in _TOUCHING_DISK:
            stack.enter_context(mock.patch.object(os, name, ticking(getattr(os, name))))
        stack.enter_context(mock.patch.object(fragment_file, "_chunks", ticking_chunks))
        yield


def _save_in_killed_child(tensors: Tensors, *, folder: Path, step: int, operation: int) -> bool:
    """Save in a process that is killed at the n-th operation; whether it lived to the end."""

    def work() -> None:
        store = FakeStore(tensors, rank=0, world_size=1, zero_stage=1, optimizer_steps=step)
        with _killed_at(operation):
            save_checkpoint(store, folder=folder, step=step, state={"step": step}, config_text="")

    status = _in_child(work)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, "the save failed by itself"
    return status == 0


def test_a_kill_at_any_point_of_a_save_leaves_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    survived = {1: 0, 2: 0}
    for operation in range(1, 200):
        folder = tmp_path / str(operation)
        save_as(SMALL_OLD, folder=folder, step=1)
        finished = _save_in_killed_child(SMALL_NEW, folder=folder, step=2, operation=operation)
        newest = find_newest(folder).checkpoint
        assert newest is not None
        step = verify(newest).step
        assert _holds(newest, {1: SMALL_OLD, 2: SMALL_NEW}[step])
        survived[step] += 1
        # The next process saves the same step again over whatever was left.
        assert _holds(save_as(SMALL_NEW, folder=folder, step=2), SMALL_NEW)
        if finished:
            break
    assert finished
    assert survived[1] >= 10
    assert survived[2] >= 2, "no kill fell between the commit and the end"


def test_a_kill_while_a_step_is_saved_again_leaves_one_of_the_two(tmp_path: Path) -> None:
    outcomes = set()
    for operation in range(1, 200):
        folder = tmp_path / str(operation)
        save_as(SMALL_OLD, folder=folder, step=2)
        finished = _save_in_killed_child(SMALL_NEW, folder=folder, step=2, operation=operation)
        newest = find_newest(folder).checkpoint
        assert newest is not None
        assert _holds(newest, SMALL_OLD) or _holds(newest, SMALL_NEW)
        outcomes.add((newest.name, _holds(newest, SMALL_NEW)))
        if finished:
            break
    assert finished
    assert outcomes == {("step-00000002", False), ("step-00000002.replaced", False), ("step-00000002", True)}


def test_everything_is_on_disk_before_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename
    path_of: Callable[[int], str] = lambda descriptor: os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append(path_of(descriptor)), fsync(descriptor)))
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append(f"rename {a.name} {b.name}"), rename(a, b)))

    save_as(OLD, folder=tmp_path / "c", step=1)

    partial = "c/step-00000001.tmp"
    files = ["rank-00000.safetensors", "state.json", "config.yaml", "manifest.json"]
    assert done == [".", "c", *(f"{partial}/{name}" for name in files), partial, "rename step-00000001.tmp step-00000001", "c"]


def test_leftovers_of_a_larger_world_do_not_get_in(tmp_path: Path) -> None:
    stale = tmp_path / "step-00000003.tmp"
    stale.mkdir()
    (stale / "rank-00004.safetensors").write_bytes(b"stale")
    path = save_as(NEW, folder=tmp_path, step=3, world_size=2)
    assert sorted(entry.name for entry in path.iterdir()) == [
        "config.yaml",
        "manifest.json",
        "rank-00000.safetensors",
        "rank-00001.safetensors",
        "state.json",
    ]
    assert _holds(path, NEW)


def _fails_on_rank_1(error: Exception) -> Callable[..., Any]:
    def write(path: Path, *, fragments: Iterator[Fragment]) -> fragment_file.FileEntry:
        if path.name == "rank-00001.safetensors":
            raise error
        return fragment_file.write_fragments(path, fragments=fragments)

    return write


def test_one_rank_with_a_full_disk_fails_the_save_on_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_as(OLD, folder=tmp_path, step=1, world_size=3)
    monkeypatch.setattr(save, "write_fragments", _fails_on_rank_1(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))

    def work(rank: int) -> Path:
        store = FakeStore(NEW, rank=rank, world_size=3, zero_stage=3)
        return save_checkpoint(store, folder=tmp_path, step=2, state={}, config_text="")

    results = SimulatedRanks(3).run(work)

    assert [type(result) for result in results] == [CheckpointError] * 3
    assert all("checkpoint of step 2 could not be saved: rank-00001.safetensors: No space left on device" in str(r) for r in results)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert _holds(tmp_path / "step-00000001", OLD)


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_failing_disk_never_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    save_as(OLD, folder=tmp_path, step=1)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(CheckpointError, match=r"step 2 could not be saved.*Input/output error.*Older checkpoints are untouched"):
        save_as(NEW, folder=tmp_path, step=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_real_limit_of_the_file_system_is_reported(tmp_path: Path) -> None:
    large = {("a", "weight"): torch.zeros(50_000)}
    save_as(OLD, folder=tmp_path, step=1)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        with pytest.raises(CheckpointError, match=r"rank-00000\.safetensors: File too large"):
            save_as(large, folder=tmp_path, step=2)  # type: ignore[arg-type]

    assert _in_child(work) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_pieces_that_leave_a_gap_are_not_committed(tmp_path: Path) -> None:
    store = FakeStore(NEW, rank=0, world_size=2, zero_stage=3)  # one of two ranks, alone
    with pytest.raises(CheckpointError, match=r"elements \[8, 15\) of backbone\.a \(weight\) are missing"):
        save_checkpoint(store, folder=tmp_path, step=1, state={}, config_text="")
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_depend_on_nothing_but_the_values(tmp_path: Path) -> None:
    first, second = (save_as(NEW, folder=tmp_path / name, step=1, world_size=2) for name in ("a", "b"))
    assert verify(first).files == verify(second).files


def test_a_state_that_json_cannot_hold_is_our_mistake(tmp_path: Path) -> None:
    store = FakeStore(NEW, rank=0, world_size=1, zero_stage=1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(store, folder=tmp_path, step=1, state={"loss": float("nan")}, config_text="")
    assert find_newest(tmp_path).checkpoint is None


@pytest.mark.dist
def test_two_real_processes_save_and_restore(tmp_path: Path) -> None:
    reports = run_ranks(Path(__file__).with_name("rank_script.py"), tmp_path)
    assert reports == [{"restored": True, "steps": 5, "error": True}] * 2
