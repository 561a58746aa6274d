"""IDX pairs of any kind: gray and colour images, other names, and files that lie about their size."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

from vitscale.config import DataError
from vitscale_data_tools.sources.idx import open_idx
from vitscale_data_tools.split import Split


def idx(values: npt.NDArray[np.uint8]) -> bytes:
    return struct.pack(f">{1 + values.ndim}I", 0x800 | values.ndim, *values.shape) + values.tobytes()


def write_pair(
    folder: Path, stem: str, images: npt.NDArray[np.uint8], labels: list[int], *, separator: str = "-", gz: bool = False
) -> None:
    for kind, values in (("images", images), ("labels", np.array(labels, np.uint8))):
        raw = idx(values)
        path = folder / f"{stem}-{kind}{separator}idx{values.ndim}-ubyte{'.gz' * gz}"
        path.write_bytes(gzip.compress(raw) if gz else raw)


def pixels(split: Split, index: int) -> npt.NDArray[np.uint8]:
    return np.asarray(PIL.Image.open(io.BytesIO(split.images.read(index).image)))


def random_images(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_gray_and_colour_of_any_size_plain_or_compressed(tmp_path: Path) -> None:
    gray, colour = random_images(3, 5, 7), random_images(2, 9, 4, 3)
    write_pair(tmp_path, "t10k", gray, [2, 0, 5], separator=".")
    write_pair(tmp_path, "emnist-letters-train", colour, [1, 0], gz=True)
    write_pair(tmp_path, "train", gray, [1, 1, 1])
    splits = open_idx(tmp_path)
    assert [split.name for split in splits] == ["train", "emnist-letters-train", "test"]
    assert [split.classes for split in splits] == [("0", "1"), ("0", "1"), ("0", "1", "2", "3", "4", "5")]
    assert not splits[0].has_class_names
    assert np.array_equal(pixels(splits[2], 2), gray[2])
    assert np.array_equal(pixels(splits[1], 1), colour[1])
    assert splits[2].members(2) == {"cls": b"5"}


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (struct.pack(">4I", 0x803, 1, 1 << 20, 1 << 20), idx(random_images(1)), "announces 1099511627776 bytes, the limit is"),
        (struct.pack(">4I", 0x803, 1, 0, 5), idx(random_images(1)), "no images of 1 or 3 channels"),
        (idx(random_images(1, 2, 2)) + b"more", idx(random_images(1)), "which do not fill its 5 bytes or more"),
        (idx(random_images(1, 2, 2)), None, "train-labels-idx1-ubyte: missing"),
        (idx(random_images(1, 2, 2)), idx(random_images(2)), "2 labels for 1 images"),
        (idx(random_images(1, 2)), idx(random_images(1)), "magic 0x00000802"),
    ],
)
def test_a_spoilt_pair(tmp_path: Path, images: bytes, labels: bytes | None, message: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images)
    if labels is not None:
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(DataError, match=message):
        open_idx(tmp_path)


def test_a_gzip_bomb_is_read_only_as_far_as_its_header_allows(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">4I", 0x803, 1, 2, 2))
        for _ in range(64):
            file.write(bytes(1 << 20))
    with pytest.raises(DataError, match="do not fill its 5 bytes or more"):
        open_idx(tmp_path)


def test_colour_images_have_three_channels(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", random_images(1, 3, 3, 4), [0])
    with pytest.raises(DataError, match="no images of 1 or 3 channels"):
        open_idx(tmp_path)


def test_a_split_is_there_once(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", random_images(1, 3, 3), [0])
    write_pair(tmp_path, "train", random_images(1, 3, 3), [0], gz=True)
    with pytest.raises(DataError, match=r"there twice \(train-images-idx3-ubyte, train-images-idx3-ubyte\.gz\)"):
        open_idx(tmp_path)


def test_no_folder_and_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_idx(tmp_path / "none")
    with pytest.raises(DataError, match="holds no IDX images"):
        open_idx(tmp_path)
