"""Opening a data set: what is refused, the flat index over shards, and the trip to another process."""

import pickle
from pathlib import Path

import pytest

from tests.data.packed import pack
from vitscale.config import DataError
from vitscale.data.dataset import Dataset, open_dataset


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


@pytest.mark.parametrize("change", ["flipped", "missing"])
def test_a_changed_index_is_refused(dataset: Dataset, tmp_path: Path, change: str) -> None:
    index = tmp_path / f"{dataset.shards[2].name}.idx.npy"
    raw = bytearray(index.read_bytes())
    raw[-1] ^= 1
    index.unlink()
    if change == "flipped":
        index.write_bytes(raw)
    with pytest.raises(DataError, match=rf"{index.name}: (changed|cannot be read)"):
        open_dataset(tmp_path)


def test_an_edited_manifest_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"num_samples": 10', '"num_samples": 9'))
    with pytest.raises(DataError, match=r"manifest\.json: edited or damaged"):
        open_dataset(tmp_path)
    assert dataset.num_samples == 10
