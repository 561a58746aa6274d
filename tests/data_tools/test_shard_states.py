"""Whatever happens to a tar or an index changes the state of the samples in it, and of no others."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.packed import pack_images
from vitscale.config import DataError
from vitscale.data.dataset import open_unchecked
from vitscale.data.index import index_name
from vitscale.data.types import StoredFile
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


class Store:
    """A bucket with nothing in it but the list of its files; None may not be listed."""

    def __init__(self, versions: dict[str, str] | None) -> None:
        self.versions = versions
        self.num_lists = 0

    def list_files(self, suffix: str) -> list[StoredFile]:
        self.num_lists += 1
        if self.versions is None:
            raise DataError("no listing")
        return [StoredFile(name=name, size=7, version=version) for name, version in self.versions.items() if name.endswith(suffix)]


def test_a_store_tells_by_one_list(tmp_path: Path) -> None:
    dataset = pack_images(tmp_path, num_samples=30, samples_per_shard=10)
    names = [name for shard in dataset.shards for name in (shard.name, index_name(shard.name))]
    store = Store({name: "etag" for name in names})
    remote = replace(dataset, storage=store, index_storage=store)  # type: ignore[arg-type]
    ranges = [(0, 10), (10, 20), (20, 30)]

    def states() -> list[str]:
        now = ShardStates(remote)
        found = [now.of(*samples) for samples in ranges]
        assert now.show_changes
        return found

    before = states()
    assert store.num_lists == 1
    assert states() == before
    for changed in names[2:4]:
        store.versions = {name: "another" if name == changed else "etag" for name in names}
        assert [old != new for old, new in zip(before, states(), strict=True)] == [False, True, False]
    store.versions = {name: "etag" for name in names[:3]}
    assert [old != new for old, new in zip(before, states(), strict=True)] == [False, True, True]


def test_what_cannot_be_listed_shows_no_changes(tmp_path: Path) -> None:
    dataset = pack_images(tmp_path, num_samples=3)
    assert ShardStates(dataset).show_changes
    silent = Store(None)
    remote = ShardStates(replace(dataset, storage=silent))  # type: ignore[arg-type]
    assert not remote.show_changes
    assert remote.of(0, 3) != ShardStates(dataset).of(0, 3)
    assert silent.num_lists == 1
    elsewhere = dataset.manifest.model_copy(update={"shards_root": "s3://tars"})
    assert not ShardStates(replace(dataset, manifest=elsewhere, index_storage=silent)).show_changes  # type: ignore[arg-type]
