"""Reads through the cache: the bytes of the source, fetched once, whatever becomes of the cache; and many processes at once."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.cache_hammer import BLOCK, FILE_BYTES, NUM_BLOCKS, NUM_FILES, content, make_source, open_cached
from tests.data.fault_proxy import FaultProxy, Flip
from tests.data.packed import pack
from tests.data.range_server import RangeServer
from vitscale.config import DataError
from vitscale.data.dataset import open_dataset
from vitscale.data.reader import SampleReader
from vitscale.data.storage.block_cache import CacheConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_source(tmp_path / "source")
    return tmp_path


@given(
    reads=st.lists(st.tuples(st.integers(0, NUM_FILES - 1), st.integers(0, FILE_BYTES), st.integers(0, 5 * BLOCK)), max_size=20),
    num_blocks=st.sampled_from([0.5, 1, 3, 1000]),
)
@settings(max_examples=40, deadline=None)
def test_every_read_is_that_of_the_source(
    tmp_path_factory: pytest.TempPathFactory, reads: list[tuple[int, int, int]], num_blocks: float
) -> None:
    folder = tmp_path_factory.mktemp("set")
    make_source(folder / "source")
    storage = open_cached(folder, num_blocks=num_blocks)
    for number, offset, length in reads:
        length = min(length, FILE_BYTES - offset)
        assert storage.read_range(f"{number}.tar", offset=offset, length=length) == content(number)[offset : offset + length]


def test_what_was_read_is_not_fetched_again(folder: Path) -> None:
    storage = open_cached(folder)
    whole = content(1)
    assert storage.read_range("1.tar", offset=BLOCK + 5, length=BLOCK) == whole[BLOCK + 5 : 2 * BLOCK + 5]
    assert storage.io_counters() == {
        "reads": 1, "bytes_read": 2 * BLOCK, "retries": 0, "cache_hits": 0, "cache_misses": 2, "cache_failures": 0,
    }  # fmt: skip
    assert storage.read_range("1.tar", offset=0, length=4 * BLOCK) == whole[: 4 * BLOCK]
    counters = storage.io_counters()
    assert (counters["reads"], counters["bytes_read"], counters["cache_hits"], counters["cache_misses"]) == (3, 4 * BLOCK, 2, 4)
    assert open_cached(folder).read_range("1.tar", offset=0, length=4 * BLOCK) == whole[: 4 * BLOCK]
    (folder / "source" / "1.tar").unlink()
    assert storage.read_range("1.tar", offset=0, length=4 * BLOCK) == whole[: 4 * BLOCK]


def test_data_sets_do_not_meet(folder: Path) -> None:
    open_cached(folder, identity="a").read_range("1.tar", offset=0, length=10)
    other = open_cached(folder, identity="b")
    other.read_range("1.tar", offset=0, length=10)
    assert other.io_counters()["cache_misses"] == 1


def test_the_last_block_is_short(folder: Path) -> None:
    storage = open_cached(folder)
    for _ in range(2):
        assert storage.read_range("2.tar", offset=FILE_BYTES - 10, length=10) == content(2)[-10:]
    assert storage.io_counters()["bytes_read"] == 123


def test_a_range_past_the_end_is_the_source_s_error(folder: Path) -> None:
    with pytest.raises(DataError, match=r"2\.tar: cut short"):
        open_cached(folder).read_range("2.tar", offset=FILE_BYTES - 5, length=10)


def test_a_file_cut_behind_the_range_does_not_lose_the_range(folder: Path) -> None:
    with open(folder / "source" / "0.tar", "r+b") as file:
        file.truncate(BLOCK + 100)
    storage = open_cached(folder)
    assert storage.read_range("0.tar", offset=BLOCK, length=100) == content(0)[BLOCK : BLOCK + 100]
    with pytest.raises(DataError, match="cut short"):
        storage.read_range("0.tar", offset=BLOCK, length=101)


def test_a_failing_cache_is_counted_and_costs_nothing_else(folder: Path) -> None:
    (folder / "cache").write_bytes(b"not a folder")
    storage = open_cached(folder)
    for _ in range(2):
        assert storage.read_range("0.tar", offset=3, length=2 * BLOCK) == content(0)[3 : 3 + 2 * BLOCK]
    counters = storage.io_counters()
    assert (counters["cache_hits"], counters["cache_misses"], counters["cache_failures"]) == (0, 6, 1)


def test_other_operations_are_those_of_the_source(folder: Path) -> None:
    (folder / "source" / "manifest.json").write_bytes(b"{}")
    storage = pickle.loads(pickle.dumps(open_cached(folder)))
    assert storage.root == str(folder / "source")
    assert storage.size("1.tar") == FILE_BYTES
    assert storage.read_file("manifest.json") == b"{}"
    assert storage.read_range("manifest.json", offset=1, length=1) == b"}"
    assert [file.name for file in storage.list_files(".tar")] == ["0.tar", "1.tar", "2.tar"]


def test_bytes_that_were_damaged_on_the_way_are_read_again_and_not_kept(tmp_path: Path) -> None:
    dataset = pack(tmp_path, [{"png": bytes([i]) * 3000, "cls": b"1"} for i in range(12)], samples_per_shard=6)
    expected = [sample.members["png"].tobytes() for sample in SampleReader(dataset).read(0, 12)]
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with RangeServer(files) as server, FaultProxy(server.port) as proxy:
        opened = open_dataset(proxy.url, cache=CacheConfig(path=str(tmp_path / "cache"), max_gib=0.0625))
        proxy.inject([Flip(), None, Flip()])  # of the first index and of the first range
        for _ in range(2):
            assert [sample.members["png"].tobytes() for sample in SampleReader(opened).read(0, 12)] == expected
        assert opened.storage.io_counters()["retries"] == 1


def _hammer(folder: Path, *, seed: int, num_reads: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.data.cache_hammer", str(folder), str(seed), str(num_reads)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[3])


def _cached_bytes(folder: Path) -> int:
    total = 0
    for path in folder.glob("cache/??/*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


@pytest.mark.dist
def test_many_processes_at_one_small_cache(folder: Path) -> None:
    processes = [_hammer(folder, seed=seed, num_reads=200) for seed in range(4)]
    most = 0
    while any(process.poll() is None for process in processes):
        most = max(most, _cached_bytes(folder))
        time.sleep(0.005)
    outputs = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert all(int(hits) > 0 for _, hits in outputs)
    assert 0 < most <= (NUM_BLOCKS + 4) * (BLOCK + 100)


@pytest.mark.dist
def test_killed_processes_leave_no_wrong_data(folder: Path) -> None:
    draws = random.Random(5)
    for seed in range(4):
        process = _hammer(folder, seed=seed, num_reads=10**9)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(0.05 + draws.random() * 0.3)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    after = _hammer(folder, seed=99, num_reads=200)
    output = after.communicate()[0].split()
    assert after.returncode == 0
    assert int(output[1]) > 0
    assert _cached_bytes(folder) <= NUM_BLOCKS * (BLOCK + 100)
