"""Reading Fashion-MNIST's files, from the sample that comes with the package, and every way they can be spoilt."""

import gzip
import io
import shutil
import struct
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from vitscale.config import DataError
from vitscale_data_tools.fetch import SAMPLE_FOLDER
from vitscale_data_tools.sources.fashion_mnist import open_fashion_mnist

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in SAMPLE_FOLDER.glob("*.gz"):
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def test_both_splits(folder: Path) -> None:
    train, test = open_fashion_mnist(folder)
    assert [(split.name, split.num_samples) for split in (train, test)] == [("train", 800), ("test", 200)]
    assert train.classes is not None
    assert train.classes[0] == "T-shirt/top"
    assert len(train.classes) == 10


def test_an_image_and_its_label_are_those_of_the_files(folder: Path) -> None:
    split = open_fashion_mnist(folder)[0]
    raw = gzip.decompress((folder / TRAIN_IMAGES).read_bytes())[16:]
    labels = gzip.decompress((folder / TRAIN_LABELS).read_bytes())[8:]
    taken = split.take(np.array([7, 799, 0]))
    for position, index in enumerate([7, 799, 0]):
        record = taken.images.read(position)
        assert np.asarray(PIL.Image.open(io.BytesIO(record.image))).tobytes() == raw[784 * index : 784 * (index + 1)]
        assert taken.members(position) == {"cls": b"%d" % labels[index]}
        assert record.extension == "png"
        assert taken.key(position) == f"train-{index:09d}"
        assert taken.images.origin(position) == f"train image {index}"


def test_one_split_alone(folder: Path) -> None:
    for path in folder.glob("train-*"):
        path.unlink()
    assert [split.name for split in open_fashion_mnist(folder)] == ["test"]


def _idx(magic: int, *shape: int, data: bytes = b"") -> bytes:
    return gzip.compress(struct.pack(f">{1 + len(shape)}I", magic, *shape) + data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (TRAIN_IMAGES, None, "missing"),
        (TRAIN_LABELS, None, "missing"),
        (TRAIN_IMAGES, b"", "not the expected IDX file"),
        (TRAIN_IMAGES, b"not gzip", "cannot be unpacked"),
        (TRAIN_IMAGES, _idx(0x803, 1, 28, 28, data=bytes(784))[:30], "cannot be unpacked"),
        (TRAIN_IMAGES, _idx(0x801, 784, data=bytes(784)), "magic 0x00000801"),
        (TRAIN_IMAGES, _idx(0x803, 1, 32, 32, data=bytes(1024)), r"shape \[32, 32\]"),
        (TRAIN_IMAGES, _idx(0x803, 2, 28, 28, data=bytes(784)), "announces 2 items"),
        (TRAIN_IMAGES, _idx(0x803, 1, 28, 28, data=bytes(785)), "announces 1 items"),
        (TRAIN_IMAGES, _idx(0x803, 0, 28, 28), "announces 0 items"),
        (TRAIN_IMAGES, _idx(0x803, 1, 28, 28, data=bytes(784)), "800 labels for 1 images"),
        (TRAIN_LABELS, _idx(0x801, 800, data=bytes([10] * 800)), "label 10 of 10 classes"),
        (TRAIN_LABELS, gzip.compress(b"\0\0\x08"), "not the expected IDX file"),
    ],
)
def test_a_spoilt_file_is_named(folder: Path, name: str, content: bytes | None, message: str) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_fashion_mnist(folder)


def test_an_empty_folder_says_how_to_get_the_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no Fashion-MNIST.*vitscale-data fetch"):
        open_fashion_mnist(tmp_path)
