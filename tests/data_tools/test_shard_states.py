"""Whatever happens to a tar or an index changes the state of the samples in it, and of no others."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.packed import pack_images
from vitscale.data.dataset import open_unchecked
from vitscale_data_tools.shard_states import ShardStates


def change_bytes(path: Path) -> None:
    """Of the same size, with the time set back: the inode is another one."""
    status = path.stat()
    path.with_suffix(".new").write_bytes(path.read_bytes()[::-1])
    os.replace(path.with_suffix(".new"), path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def cut(path: Path) -> None:
    status = path.stat()
    os.truncate(path, status.st_size - 1)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [change_bytes, touch, cut, os.unlink])
@pytest.mark.parametrize("name", ["train-00001.tar", "train-00001.tar.idx.npy"])
def test_a_change_shows(tmp_path: Path, name: str, change: Callable[[Path], None]) -> None:
    dataset = pack_images(tmp_path, num_samples=30, samples_per_shard=10)
    ranges = [(0, 10), (10, 20), (20, 30), (5, 15), (12, 13)]
    before = [ShardStates(dataset).of(*samples) for samples in ranges]
    assert [ShardStates(dataset).of(*samples) for samples in ranges] == before
    change(tmp_path / name)
    after = [ShardStates(open_unchecked(tmp_path)).of(*samples) for samples in ranges]
    assert [old != new for old, new in zip(before, after, strict=True)] == [False, True, False, True, True]


def test_a_store_shows_no_changes(tmp_path: Path) -> None:
    dataset = pack_images(tmp_path, num_samples=3)
    assert ShardStates(dataset).show_changes
    remote = replace(dataset, storage=object())  # type: ignore[arg-type]
    assert not ShardStates(remote).show_changes
    assert not ShardStates(replace(dataset, index_storage=object())).show_changes  # type: ignore[arg-type]
    assert ShardStates(remote).of(0, 3) != ShardStates(dataset).of(0, 3)
