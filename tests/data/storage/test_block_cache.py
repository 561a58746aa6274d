"""The block cache against a plain model, and against damage, a full disk and a folder that cannot be written."""

import logging
import os
import pickle
import resource
import signal
import struct
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.facilities import mounted_tmpfs
from vitscale.data.storage.block_cache import BlockCache, CacheConfig
from vitscale.data.storage.block_file import encode_block

LENGTH = 1000
FILE_BYTES = len(encode_block(bytes(LENGTH), key=bytes(32)))


def _key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def _payload(number: int) -> bytes:
    return bytes([number % 256]) * LENGTH


def _get(cache: BlockCache, number: int) -> memoryview | None:
    return cache.get(_key(number), length=LENGTH, first=0, stop=LENGTH)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("??/*") if path.is_file())


def _used(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


@given(
    steps=st.lists(st.tuples(st.sampled_from(["get", "put", "drop", "flip", "cut"]), st.integers(0, 11)), max_size=60),
    capacity=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_it_behaves_like_a_dict_that_forgets_what_was_used_longest_ago(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], capacity: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = BlockCache(folder, max_bytes=capacity * FILE_BYTES)
    model: OrderedDict[int, bytes] = OrderedDict()
    for action, number in steps:
        path = folder / _key(number).hex()[:2] / _key(number).hex()
        if action == "get":
            assert _get(cache, number) == model.get(number)
            if number in model:
                model.move_to_end(number)
        elif action == "put":
            assert cache.put(_key(number), _payload(number))
            if number not in model:
                while len(model) >= capacity:
                    model.popitem(last=False)
                model[number] = _payload(number)
        elif action == "drop":
            cache.drop(_key(number))
            model.pop(number, None)
        elif number in model:
            raw = bytearray(path.read_bytes())
            raw[len(raw) // 2] ^= 4
            status = path.stat()
            path.write_bytes(raw if action == "flip" else raw[:-1])
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            assert _get(cache, number) is None
            del model[number]
        assert len(_files(folder)) == len(model)
        assert _used(folder) <= capacity * FILE_BYTES


def test_an_eviction_makes_room_for_more_than_one_block(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=100 * FILE_BYTES)
    for number in range(101):
        cache.put(_key(number), _payload(number))
    assert len(_files(tmp_path)) == 96
    assert [number for number in range(101) if _get(cache, number) is None] == [0, 1, 2, 3, 4]


def test_a_block_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=FILE_BYTES - 1)
    assert cache.put(_key(1), _payload(1))
    assert _get(cache, 1) is None
    assert _files(tmp_path) == []


def test_a_range_of_a_block(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=10**6)
    payload = os.urandom(LENGTH)
    cache.put(_key(1), payload)
    assert cache.get(_key(1), length=LENGTH, first=10, stop=20) == payload[10:20]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another block"])
def test_a_damaged_file_is_a_miss_and_is_replaced(tmp_path: Path, damage: str) -> None:
    cache = BlockCache(tmp_path, max_bytes=10**6)
    cache.put(_key(1), _payload(1))
    (path,) = _files(tmp_path)
    raw = path.read_bytes()
    flipped = bytes([*raw[:-1], raw[-1] ^ 1])
    path.write_bytes({"flipped": flipped, "cut": raw[:-1], "empty": b"", "another block": encode_block(_payload(2), key=_key(2))}[damage])
    assert _get(cache, 1) is None
    assert cache.put(_key(1), _payload(1))
    assert _get(cache, 1) == _payload(1)


@pytest.mark.parametrize("state", ["missing", "torn", "flipped", "too high", "too low"])
def test_a_wrong_count_of_bytes_is_corrected(tmp_path: Path, state: str) -> None:
    cache = BlockCache(tmp_path, max_bytes=4 * FILE_BYTES)
    for number in range(4):
        cache.put(_key(number), _payload(number))
    usage = tmp_path / "usage"
    raw = usage.read_bytes()
    if state == "missing":
        usage.unlink()
    elif state in ("torn", "flipped"):
        usage.write_bytes(raw[:5] if state == "torn" else bytes([raw[0] ^ 1, *raw[1:]]))
    elif state == "too high":  # a writer was killed between its reservation and its file
        cache._reserve(FILE_BYTES, path=tmp_path / "none")
    else:  # a file came back that had been counted out
        used, _ = struct.unpack("<QI", raw)
        usage.write_bytes(struct.pack("<QI", used - FILE_BYTES, zlib.crc32(struct.pack("<Q", used - FILE_BYTES))))
    for number in range(4, 12):
        cache.put(_key(number), _payload(number))
    slip = FILE_BYTES if state == "too low" else 0
    assert _used(tmp_path) <= 4 * FILE_BYTES + slip
    assert _get(cache, 11) == _payload(11)
    assert cache._evict(0) == _used(tmp_path)


def test_what_a_killed_writer_left_is_counted_and_evicted(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=3 * FILE_BYTES)
    cache.put(_key(1), _payload(1))
    (path,) = _files(tmp_path)
    torn = path.with_name(f"{_key(1).hex()}.0123456789abcdef.tmp")
    torn.write_bytes(bytes(FILE_BYTES // 2))
    os.utime(torn, ns=(1, 1))
    (tmp_path / "usage").unlink()
    for number in range(2, 5):
        cache.put(_key(number), _payload(number))
    assert not torn.exists()
    assert _used(tmp_path) <= 3 * FILE_BYTES


def test_what_another_process_is_writing_counts_with_all_its_bytes(tmp_path: Path) -> None:
    slow, cache = (BlockCache(tmp_path, max_bytes=4 * FILE_BYTES) for _ in range(2))
    for number in (2, 3):
        cache.put(_key(number), _payload(number))
    path = slow._path(_key(1))
    path.parent.mkdir()
    begun = slow._reserve(FILE_BYTES, path=path)
    assert begun is not None
    for number in (4, 5):  # the second has to make room
        cache.put(_key(number), _payload(number))
    assert begun.exists()
    slow._write(begun, encode_block(_payload(1), key=_key(1)), path=path)
    assert _get(cache, 1) == _payload(1)
    assert _used(tmp_path) <= 4 * FILE_BYTES


def test_what_is_evicted_while_it_is_written_is_counted_out_once(tmp_path: Path) -> None:
    slow, cache = (BlockCache(tmp_path, max_bytes=4 * FILE_BYTES) for _ in range(2))
    path = slow._path(_key(1))
    path.parent.mkdir()
    begun = slow._reserve(FILE_BYTES, path=path)
    assert begun is not None
    for number in range(2, 12):
        cache.put(_key(number), _payload(number))
    assert not begun.exists()
    slow._write(begun, encode_block(_payload(1), key=_key(1)), path=path)
    for number in range(12, 30):
        cache.put(_key(number), _payload(number))
        assert _used(tmp_path) <= 4 * FILE_BYTES


def test_a_child_that_was_forked_while_the_lock_was_held_does_not_keep_it(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=10**6)
    cache.put(_key(1), _payload(1))
    with cache._locked():
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        cache.put(_key(2), _payload(2))
        assert _get(cache, 2) == _payload(2)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    foreign = [tmp_path / "notes.txt", tmp_path / "ab" / "notes.txt", tmp_path / "other" / ("0" * 64)]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(5000))
    cache = BlockCache(tmp_path, max_bytes=2 * FILE_BYTES)
    for number in range(8):
        cache.put(_key(number), _payload(number))
    assert all(path.exists() for path in foreign)
    assert _get(cache, 7) == _payload(7)


def test_a_busy_lock_skips_the_block_instead_of_waiting(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=10**6)
    cache.put(_key(1), _payload(1))
    with cache._locked() as usage:
        assert usage is not None
        assert cache.put(_key(2), _payload(2))
    assert _get(cache, 2) is None
    assert cache.put(_key(2), _payload(2))
    assert _get(cache, 2) == _payload(2)


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache", max_bytes=10**6)
    cache.put(_key(1), _payload(1))
    (path,) = _files(tmp_path / "cache")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_pickle(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=10**6)
    cache.put(_key(1), _payload(1))
    assert _get(pickle.loads(pickle.dumps(cache)), 1) == _payload(1)


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = BlockCache(tmp_path / "file" / "cache", max_bytes=10**6)
    with caplog.at_level(logging.WARNING):
        assert not cache.put(_key(1), _payload(1))
        assert cache.put(_key(1), _payload(1))  # not tried again within a minute
        cache._resume_at = 0.0
        assert not cache.put(_key(1), _payload(1))
    assert [record.getMessage().count("cannot be written") for record in caplog.records] == [1]
    assert _get(cache, 1) is None


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = BlockCache(tmp_path, max_bytes=10**6)
    cache.put(_key(1), _payload(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES // 2, limits[1]))
    try:
        with caplog.at_level(logging.WARNING):
            assert not cache.put(_key(2), _payload(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in caplog.text
    assert len(_files(tmp_path)) == 1
    assert cache._evict(0) == FILE_BYTES
    cache._resume_at = 0.0
    assert cache.put(_key(2), _payload(2))
    assert _get(cache, 2) == _payload(2)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_tmpfs(tmp_path, size="16k"):
        yield tmp_path


def test_a_full_disk_costs_the_cache_only(tiny_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = BlockCache(tiny_disk, max_bytes=10**6)
    with caplog.at_level(logging.WARNING):
        kept = [cache.put(_key(number), _payload(number)) for number in range(20)]
    assert not all(kept)
    assert [record.getMessage().count("No space left") for record in caplog.records] == [1]
    found = [_get(cache, number) for number in range(20)]
    assert found[0] == _payload(0)
    assert all(data in (None, _payload(number)) for number, data in enumerate(found))
    assert not list(tiny_disk.glob("??/*.tmp"))


def test_the_configuration() -> None:
    assert CacheConfig(path="/tmp/cache", max_gib=0.5).max_bytes == 2**29
    for wrong in ({"path": "", "max_gib": 1.0}, {"path": "x", "max_gib": 0.01}, {"path": "x"}):
        with pytest.raises(ValidationError):
            CacheConfig(**wrong)
