"""Cuts and flipped bits of a shard, counted through the whole reader and through webdataset's own, measured the same way.

`pytest -s tests/data/test_corruption.py` prints the table.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from tests.data.scanned import scan_tar
from tests.data_tools.images import image_bytes
from vitscale.config import DataError
from vitscale.data.dataset import Dataset, open_dataset, open_unchecked
from vitscale.data.index import encode_index, index_name
from vitscale.data.manifest import MANIFEST_NAME, Manifest, Shard, encode_manifest
from vitscale.data.reader import SampleReader
from vitscale.data.types import LostSample

NUM_SAMPLES = 20
NUM_CUTS = 292
NUM_FLIPS = 400
NAME = "a.tar"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of one tar that webdataset wrote: JPEGs with labels."""
    folder = tmp_path_factory.mktemp("shards")
    with webdataset.TarWriter(str(folder / NAME), encoder=False, mtime=0) as writer:
        for number in range(NUM_SAMPLES):
            writer.write({"__key__": f"{number:06d}", "cls": b"%d" % number, "jpg": image_bytes(number, size=(44, 36))})
    raw = (folder / NAME).read_bytes()
    index = encode_index(scan_tar(folder / NAME).table)
    (folder / index_name(NAME)).write_bytes(index)
    shard = Shard(
        name=NAME,
        bytes=len(raw),
        num_samples=NUM_SAMPLES,
        sha256=hashlib.sha256(raw).hexdigest(),
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    manifest = Manifest(split=None, num_samples=NUM_SAMPLES, classes=None, members=("cls", "jpg"), shards=(shard,), source={"kind": "test"})
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> bytes:
    return (folder / NAME).read_bytes()


def cuts(data: bytes, *, until: int) -> list[bytes]:
    """The tar cut at evenly spread places before the end of its last sample: in headers, payloads and padding, and between them."""
    return [data[: round(number * until / NUM_CUTS)] for number in range(NUM_CUTS)]


def flips(data: bytes, *, until: int) -> list[bytes]:
    """The tar with one bit of a sample's headers, payloads or padding flipped."""
    damaged = []
    for place, bit in np.random.default_rng(0).integers(0, (until, 8), (NUM_FLIPS, 2)).tolist():
        raw = bytearray(data)
        raw[place] ^= 1 << bit
        damaged.append(bytes(raw))
    return damaged


def end_of_samples(folder: Path) -> int:
    dataset = open_unchecked(folder)
    last = dataset.read_index(dataset.shards[0])[-1]
    return int(last["offset"] + last["length"])


def detects(folder: Path, raw: bytes) -> bool:
    """Whether opening and reading the data set says that it is damaged."""
    (folder / NAME).write_bytes(raw)
    try:
        dataset = open_dataset(folder)
        SampleReader(dataset).read(0, NUM_SAMPLES)
    except DataError:
        return True
    return False


def webdataset_detects(folder: Path, raw: bytes) -> bool:
    """Whether webdataset's reader raises anything at all, with the handler that passes every error on."""
    (folder / NAME).write_bytes(raw)
    try:
        list(webdataset.WebDataset([str(folder / NAME)], shardshuffle=False, handler=webdataset.reraise_exception))
    except Exception:
        return True
    return False


@pytest.fixture
def restored(folder: Path) -> Path:
    """A folder whose tar may be damaged."""
    copy = folder.parent / "damaged"
    copy.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


Detector = Callable[[Path, bytes], bool]


def count(detector: Detector, damaged: list[bytes], *, folder: Path) -> int:
    return sum(detector(folder, raw) for raw in damaged)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open that it stumbled over
def test_every_cut_and_every_flip_is_detected(restored: Path, data: bytes) -> None:
    until = end_of_samples(restored)
    table = {
        "cuts": (cuts(data, until=until), NUM_CUTS),
        "flips": (flips(data, until=until), NUM_FLIPS),
    }
    for name, (damaged, number) in table.items():
        ours = count(detects, damaged, folder=restored)
        theirs = count(webdataset_detects, damaged, folder=restored)
        print(f"{name}: {ours} of {number} detected, webdataset's reader {theirs}")
        assert ours == number
        assert theirs < number
    assert not detects(restored, data)
    assert not webdataset_detects(restored, data)


def test_damage_after_the_opening_loses_what_it_hits_and_nothing_else(restored: Path, data: bytes) -> None:
    """The sizes were right when the data set was opened: each sample is still checked as it is read."""
    until = end_of_samples(restored)
    dataset = open_dataset(restored)
    table = dataset.read_index(dataset.shards[0])
    for raw in [*cuts(data, until=until)[::4], *flips(data, until=until)[::4]]:
        (restored / NAME).write_bytes(raw)
        hit = {
            row for row, (offset, length, _) in enumerate(table.tolist()) if raw[offset : offset + length] != data[offset : offset + length]
        }
        assert hit
        assert lost_one_by_one(dataset) == hit


def lost_one_by_one(dataset: Dataset) -> set[int]:
    reader = SampleReader(dataset)
    samples = [sample for number in range(NUM_SAMPLES) for sample in reader.scan(number, number + 1, epoch=0)]
    return {sample.sample_id for sample in samples if isinstance(sample, LostSample)}
