"""Ranged reads of local files: exact, short, missing; the cache of open files; threads, forks and pickles."""

import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vitscale.config import DataError
from vitscale.data.storage import storage as storage_module
from vitscale.data.storage.storage import open_storage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 8)
    return tmp_path


def test_reads(folder: Path) -> None:
    storage = open_storage(folder)
    assert storage.size("a.bin") == 2048
    assert storage.read_file("a.bin") == bytes(range(256)) * 8
    assert storage.read_range("a.bin", offset=250, length=10) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])
    assert storage.read_range("a.bin", offset=5, length=0) == b""


@pytest.mark.parametrize(("offset", "length", "there"), [(2040, 9, 8), (2048, 1, 0), (5000, 4, 0)])
def test_a_short_file_is_an_error_that_names_it(folder: Path, offset: int, length: int, there: int) -> None:
    with pytest.raises(DataError, match=rf"a\.bin: cut short, {there} of the {length} bytes at offset {offset}"):
        open_storage(folder).read_range("a.bin", offset=offset, length=length)


def test_reads_that_the_system_delivers_in_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, min(length, 7), offset))
    assert open_storage(folder).read_range("a.bin", offset=3, length=100) == (bytes(range(256)) * 8)[3:103]


@pytest.mark.parametrize("operation", ["size", "read_file", "read_range"])
def test_a_missing_file_is_named(folder: Path, operation: str) -> None:
    arguments = {"offset": 0, "length": 1} if operation == "read_range" else {}
    with pytest.raises(DataError, match=r"none\.tar: cannot be read: No such file"):
        getattr(open_storage(folder), operation)("none.tar", **arguments)


@pytest.mark.parametrize("address", ["pipe:cat a.tar", "file:///data", "ftp://host/x", "PIPE:x", "ais://b/x", "data:image"])
def test_other_schemes_are_refused_by_name(address: str) -> None:
    with pytest.raises(DataError, match=rf"^{address.split(':')[0].lower()}: is not a place that data is read from"):
        open_storage(address)


def test_a_folder_with_a_colon_is_reached_by_a_path(folder: Path) -> None:
    (folder / "v:2").mkdir()
    (folder / "v:2" / "a.bin").write_bytes(b"abc")
    assert open_storage(f"{folder}/v:2").read_file("a.bin") == b"abc"


def test_few_files_stay_open(folder: Path) -> None:
    storage = open_storage(folder)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3 * storage_module._OPEN_FILES):
        (folder / f"{number}.bin").write_bytes(bytes([number]))
        assert storage.read_range(f"{number}.bin", offset=0, length=1) == bytes([number])
    assert len(os.listdir("/proc/self/fd")) - before <= storage_module._OPEN_FILES
    del storage
    assert len(os.listdir("/proc/self/fd")) <= before


def test_threads_share_a_cache_smaller_than_their_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_OPEN_FILES", 2)
    for number in range(8):
        (folder / f"{number}.bin").write_bytes(bytes([number]) * 64)
    storage = open_storage(folder)

    def read(step: int) -> bool:
        number = step * 5 % 8
        return storage.read_range(f"{number}.bin", offset=step % 60, length=4) == bytes([number]) * 4

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(4000)))
    finally:
        sys.setswitchinterval(interval)


def test_a_fork_reads_even_if_the_lock_was_held(folder: Path) -> None:
    storage = open_storage(folder)
    storage.read_range("a.bin", offset=0, length=1)
    with storage._lock:  # type: ignore[attr-defined]
        child = os.fork()
        if child == 0:
            os._exit(0 if storage.read_range("a.bin", offset=1, length=1) == b"\x01" else 1)
        _, status = os.waitpid(child, 0)
    assert status == 0


def test_pickle(folder: Path) -> None:
    storage = open_storage(folder)
    storage.read_range("a.bin", offset=0, length=1)
    assert pickle.loads(pickle.dumps(storage)).read_range("a.bin", offset=1, length=2) == b"\x01\x02"


def test_names_are_listed_by_their_ending_in_order(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "part/0.tar", "a.tar.idx.npy", "tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.tar").mkdir()
    assert open_storage(tmp_path).list_names(".tar") == ["a.tar", "b.tar", "part/0.tar"]
    assert open_storage(tmp_path / "part").list_names(".zip") == []
