"""Opening a data set: what is refused, the flat index over shards, and the trip to another process."""

import pickle
from pathlib import Path

import pytest

from tests.data.packed import pack
from vitscale.config import DataError
from vitscale.data.dataset import Dataset, open_dataset
from vitscale.data.index import index_name
from vitscale.data.manifest import MANIFEST_NAME, encode_manifest
from vitscale.data.reader import SampleReader
from vitscale.data.storage.block_cache import CacheConfig


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return pack(tmp_path, [{"png": bytes([i]) * 10, "cls": b"1"} for i in range(10)], samples_per_shard=4)


def test_what_is_known_after_opening(dataset: Dataset, tmp_path: Path) -> None:
    assert dataset.num_samples == 10
    assert dataset.num_classes == 10
    assert dataset.classes == tuple("0123456789")
    assert [shard.num_samples for shard in dataset.shards] == [4, 4, 2]
    assert dataset.shard_starts == (0, 4, 8, 10)
    assert open_dataset(str(tmp_path)).sha256 == dataset.sha256


def test_spans_cut_a_range_at_shard_boundaries(dataset: Dataset) -> None:
    spans = [(span.shard.name, span.first, span.stop, span.first_id) for span in dataset.spans(2, 9)]
    assert spans == [("train-00000.tar", 2, 4, 2), ("train-00001.tar", 0, 4, 4), ("train-00002.tar", 0, 1, 8)]
    assert dataset.spans(3, 3) == []


def test_every_sample_is_located(dataset: Dataset) -> None:
    located = [dataset.locate(i) for i in range(10)]
    assert [(int(span.shard.name[6:11]), span.first) for span in located] == [(i // 4, i % 4) for i in range(10)]


@pytest.mark.parametrize(("first", "stop"), [(-1, 2), (0, 11), (5, 4)])
def test_a_range_outside_is_our_mistake(dataset: Dataset, first: int, stop: int) -> None:
    with pytest.raises(IndexError):
        dataset.spans(first, stop)


def test_pickle(dataset: Dataset) -> None:
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.sha256 == dataset.sha256
    assert copy.read_index(copy.shards[0]).tolist() == dataset.read_index(dataset.shards[0]).tolist()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data set folder"):
        open_dataset(tmp_path / "none")


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a packed data set, it has no manifest\.json"):
        open_dataset(tmp_path)


def test_the_folder_above_the_splits_names_them(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        pack(tmp_path / split, [{"cls": b"1"}], samples_per_shard=1)
    with pytest.raises(DataError, match=r"Give one of the data sets inside it: .*/test, .*/train"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("change", ["grown", "cut", "missing"])
def test_a_changed_shard_is_refused(dataset: Dataset, tmp_path: Path, change: str) -> None:
    tar = tmp_path / dataset.shards[1].name
    raw = tar.read_bytes()
    tar.unlink()
    if change != "missing":
        tar.write_bytes(raw + b"x" if change == "grown" else raw[:-1])
    with pytest.raises(DataError, match=rf"{tar.name}: (changed since the data set was packed: \d+ bytes|cannot be read)"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("change", ["cut", "missing"])
def test_a_changed_index_is_refused(dataset: Dataset, tmp_path: Path, change: str) -> None:
    index = tmp_path / f"{dataset.shards[2].name}.idx.npy"
    raw = index.read_bytes()
    index.unlink()
    if change == "cut":
        index.write_bytes(raw[:40])
    with pytest.raises(DataError, match=rf"{index.name}: (changed since the data set was packed: 40 bytes|cannot be read)"):
        open_dataset(tmp_path)


def test_a_flipped_index_is_refused_when_it_is_read(dataset: Dataset, tmp_path: Path) -> None:
    index = tmp_path / f"{dataset.shards[2].name}.idx.npy"
    raw = bytearray(index.read_bytes())
    raw[-1] ^= 1
    index.write_bytes(raw)
    opened = open_dataset(tmp_path)
    assert len(opened.read_index(opened.shards[1])) == 4
    with pytest.raises(DataError, match=rf"{index.name}: changed since the data set was packed \(its sha256"):
        opened.read_index(opened.shards[2])


@pytest.mark.parametrize("position", [0, 130, 199])
def test_a_changed_shard_among_many_is_refused(tmp_path: Path, position: int) -> None:
    dataset = pack(tmp_path, [{"cls": b"1"}] * 200, samples_per_shard=1)
    tar = tmp_path / dataset.shards[position].name
    tar.write_bytes(tar.read_bytes() + b"x")
    with pytest.raises(DataError, match=rf"{tar.name}: changed since the data set was packed"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("is_relative", [False, True])
def test_tars_that_lie_elsewhere(dataset: Dataset, tmp_path: Path, is_relative: bool) -> None:
    index = tmp_path / "index"
    _move_indexes(dataset, tmp_path, index, shards_root=".." if is_relative else str(tmp_path))
    opened = open_dataset(index)
    assert SampleReader(opened).read(3, 9)[0].members.keys() == {"png", "cls"}
    assert opened.storage.root != opened.index_storage.root
    assert opened.io_counters()["reads"] == 3
    (tmp_path / opened.shards[1].name).unlink()
    with pytest.raises(DataError, match=rf"{tmp_path}.*/{opened.shards[1].name}: cannot be read"):
        open_dataset(index)


def test_reading_through_a_cache(dataset: Dataset, tmp_path: Path) -> None:
    cached = open_dataset(tmp_path, cache=CacheConfig(path=str(tmp_path / "cache"), max_gib=0.0625))
    expected = [sample.members["png"].tobytes() for sample in SampleReader(dataset).read(0, 10)]
    for _ in range(2):
        assert [sample.members["png"].tobytes() for sample in SampleReader(cached).read(0, 10)] == expected
    counters = cached.storage.io_counters()
    assert (counters["cache_misses"], counters["cache_hits"], counters["reads"]) == (3, 3, 3)
    copy = pickle.loads(pickle.dumps(cached))
    assert len(SampleReader(copy).read(0, 10)) == 10
    assert copy.storage.io_counters()["reads"] == 0


def _move_indexes(dataset: Dataset, source: Path, target: Path, *, shards_root: str) -> None:
    target.mkdir()
    for shard in dataset.shards:
        name = index_name(shard.name)
        (source / name).rename(target / name)
    (source / MANIFEST_NAME).unlink()
    (target / MANIFEST_NAME).write_bytes(encode_manifest(dataset.manifest.model_copy(update={"shards_root": shards_root})))


def test_an_edited_manifest_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"num_samples": 10', '"num_samples": 9'))
    with pytest.raises(DataError, match=r"manifest\.json: edited or damaged"):
        open_dataset(tmp_path)
    assert dataset.num_samples == 10
