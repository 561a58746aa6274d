"""The cache of open files: few stay open, none is closed under a reader, threads and forks do not hinder each other."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.data.forked import exit_code_of_fork
from vitscale.data.storage import open_files as open_files_module
from vitscale.data.storage.open_files import OpenFiles


def _num_open() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(8):
        (tmp_path / f"{number}.bin").write_bytes(bytes([number]) * 64)
    return tmp_path


def test_the_files_used_last_stay_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files_module, "_MOST_OPEN", 3)
    files = OpenFiles(folder)
    for number in range(3):
        files.open(f"{number}.bin")
    assert files.get("0.bin") is not None
    files.open("3.bin")
    assert [files.get(f"{number}.bin") is not None for number in range(4)] == [True, False, True, True]


def test_descriptors_are_closed_when_they_are_dropped_cleared_or_forgotten(folder: Path) -> None:
    before = _num_open()
    files = OpenFiles(folder)
    for number in range(4):
        files.open(f"{number}.bin")
    assert _num_open() == before + 4
    files.open("0.bin")
    assert _num_open() == before + 4, "the older one of the same name is closed"
    files.drop("0.bin")
    files.drop("none.bin")
    assert _num_open() == before + 3
    files.clear()
    assert _num_open() == before
    files.open("1.bin")
    del files
    assert _num_open() == before


def test_a_file_is_not_closed_under_its_reader(folder: Path) -> None:
    files = OpenFiles(folder)
    file = files.open("5.bin")
    files.clear()
    (folder / "5.bin").unlink()
    assert file.read(offset=60, length=10) == bytes([5]) * 4


def test_a_file_that_cannot_be_opened_leaves_nothing_behind(folder: Path) -> None:
    files = OpenFiles(folder)
    with pytest.raises(FileNotFoundError):
        files.open("none.bin")
    assert files.get("none.bin") is None


def test_reads_that_the_system_delivers_in_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.bin").write_bytes(bytes(range(256)))
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, min(length, 7), offset))
    assert OpenFiles(folder).open("a.bin").read(offset=3, length=100) == bytes(range(3, 103))


def test_threads_share_a_cache_smaller_than_their_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files_module, "_MOST_OPEN", 2)
    files = OpenFiles(folder)

    def read(step: int) -> bool:
        name = f"{step * 5 % 8}.bin"
        if step % 50 == 0:
            files.clear()
        file = files.get(name) or files.open(name)
        return file.read(offset=step % 60, length=4) == bytes([step * 5 % 8]) * 4

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(4000)))
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("first_call", ["get", "open", "drop", "clear"])
def test_a_fork_goes_on_even_if_the_lock_was_held(folder: Path, first_call: str) -> None:
    files = OpenFiles(folder)
    files.open("1.bin")

    def work() -> None:
        getattr(files, first_call)(*(() if first_call == "clear" else ("1.bin",)))
        assert (files.get("1.bin") or files.open("1.bin")).read(offset=1, length=1) == b"\x01"

    with files._lock:
        assert exit_code_of_fork(work) == 0
    assert files.get("1.bin") is not None, "the parent's are as they were"
