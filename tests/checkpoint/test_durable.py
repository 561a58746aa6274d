"""Durable writes: what is synced, in which order, and how a failing disk is reported."""

import errno
import os
from pathlib import Path

import pytest

from vitscale.checkpoint import durable
from vitscale.checkpoint.durable import DurableStream, create_folder, disk_errors, rename_durably, sync_folder, write_durably
from vitscale.config import CheckpointError


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is synced, made or renamed, in order."""
    done: list[str] = []
    fsync, rename, mkdir = os.fsync, os.rename, os.mkdir

    def traced_fsync(descriptor: int) -> None:
        done.append(f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append(f"rename {a.name}"), rename(a, b)))
    monkeypatch.setattr(os, "mkdir", lambda path, *rest: (done.append(f"mkdir {Path(path).name}"), mkdir(path, *rest)))
    return done


def test_a_file_is_synced_and_never_overwritten(tmp_path: Path, trace: list[str]) -> None:
    write_durably(tmp_path / "a", b"one")
    assert trace == ["fsync a"]
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"


def test_the_parent_is_synced_after_a_rename_and_after_each_new_folder(tmp_path: Path, trace: list[str]) -> None:
    create_folder(tmp_path / "x" / "y")
    assert trace == ["mkdir x", f"fsync {tmp_path.name}", "mkdir y", "fsync x"]
    trace.clear()
    create_folder(tmp_path / "x" / "y")
    assert trace == []
    rename_durably(tmp_path / "x" / "y", tmp_path / "x" / "z")
    assert trace == ["rename y", "fsync x"]
    assert (tmp_path / "x" / "z").is_dir()


def test_a_folder_descriptor_is_closed_even_when_the_sync_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_disk_errors_name_the_file_and_leave_other_errors_alone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing: No such file"), disk_errors():
        (tmp_path / "missing").read_bytes()
    with pytest.raises(CheckpointError, match=r"^No space left on device$"), disk_errors():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ZeroDivisionError), disk_errors():
        1 / 0  # noqa: B018


def test_a_large_file_goes_to_disk_on_the_way_and_leaves_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []
    monkeypatch.setattr(durable, "WRITE_BACK_BYTES", 100)
    monkeypatch.setattr(os, "posix_fadvise", lambda _descriptor, _start, length, _advice: done.append(("hand over", length)))
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(("fsync", os.fstat(descriptor).st_size)))
    with (tmp_path / "a").open("xb") as file:
        stream = DurableStream(file)
        for _ in range(7):
            stream.write(b"x" * 40)
        assert stream.finish() == 280
    assert done == [("hand over", 120), ("hand over", 240), ("fsync", 280), ("hand over", 0)]
    assert (tmp_path / "a").read_bytes() == b"x" * 280
