"""Image folders: what is packed, in which order, and what is refused with the names of the files."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.data_tools.images import image_bytes, write_image_folder
from vitscale.config import DataError
from vitscale.data.decode import MAX_PIXELS as DECODER_LIMIT
from vitscale_data_tools.image_folder import MAX_PIXELS, ImageFolderSplit, open_image_folder
from vitscale_data_tools.split import UnusableImageError


def opened(folder: Path) -> ImageFolderSplit:
    (split,) = open_image_folder(folder)
    return split


def test_classes_and_files_in_order_with_unchanged_bytes(tmp_path: Path) -> None:
    files = write_image_folder(tmp_path)
    split = opened(tmp_path)
    assert split.classes == ("ant", "bee (wild)", "cat")
    assert list(split.paths) == sorted(files)
    for index, path in enumerate(split.paths):
        sample = split.read(index)
        assert (sample.label, sample.image) == files[path]
        assert split.sizes[index] == len(sample.image)
    assert [split.read(i).extension for i in range(6)] == ["jpg", "jpg", "png", "png", "webp", "jpg"]
    assert split.notes == ()


def test_a_part_of_it_reads_the_same(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    split = opened(tmp_path)
    part = split.take(np.array([4, 1]))
    assert [part.read(0), part.read(1)] == [split.read(4), split.read(1)]
    assert part.num_samples == 2


def test_other_files_are_passed_over_aloud_and_hidden_ones_silently(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "ant" / "notes.txt").write_text("x")
    (tmp_path / "ant" / ".DS_Store").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("x")
    split = opened(tmp_path)
    assert split.num_samples == 6
    assert split.notes == ("passing over files that are no images: ant/notes.txt",)


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "ant" / "loop").symlink_to(tmp_path)
    (tmp_path / "ant" / "same.jpg").symlink_to(tmp_path / "ant" / "1.jpg")
    split = opened(tmp_path)
    assert split.paths[:3] == ("ant/1.jpg", "ant/deep er/2.JPEG", "ant/same.jpg")
    assert split.notes == ("passing over files that are no images: ant/loop",)


def test_a_dangling_link_is_an_unusable_image(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "ant" / "0.jpg").symlink_to(tmp_path / "none.jpg")
    split = opened(tmp_path)
    with pytest.raises(UnusableImageError, match="No such file"):
        split.read(0)


def test_a_class_folder_named_in_no_text_encoding(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    os.rename(tmp_path / "ant", os.fsencode(tmp_path) + b"/ant\xff")
    with pytest.raises(DataError, match=r"not UTF-8 text: 'ant\\udcff'\. Rename"):
        open_image_folder(tmp_path)


def test_images_beside_the_class_folders(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    for number in range(7):
        (tmp_path / f"{number}.jpg").write_bytes(image_bytes(0))
    with pytest.raises(DataError, match=r"without a class folder: 0\.jpg, 1\.jpg, 2\.jpg, 3\.jpg, 4\.jpg and 2 more"):
        open_image_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dog", r"class folders without an image .*: dog\. Fill"),
        ("dog/scan.tiff", r"cannot be packed: dog/scan\.tiff\. Convert"),
    ],
)
def test_what_a_class_folder_must_not_be(tmp_path: Path, name: str, message: str) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "dog").mkdir()
    if "/" in name:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        open_image_folder(tmp_path)


def test_a_folder_without_classes_or_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class folders"):
        open_image_folder(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        open_image_folder(tmp_path / "none")


def _png_of_size(width: int, height: int) -> bytes:
    """A PNG that only claims its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a JPEG, PNG or WebP image"),
        (b"GIF89a" + bytes(100), "not a JPEG, PNG or WebP image"),
        (image_bytes(0, file_format="GIF"), "not a JPEG, PNG or WebP image"),
        (image_bytes(0)[:15], "."),
        (image_bytes(0, file_format="PNG")[:-30], "."),
        (image_bytes(0, file_format="PNG").replace(b"IEND", b"IENE"), "."),
        (_png_of_size(11_000, 11_000), "11000 x 11000 pixels, the limit is"),
        (_png_of_size(60_000, 60_000), "exceeds limit"),
    ],
)
def test_an_unusable_image_has_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "ant" / "1.jpg").write_bytes(content)
    split = opened(tmp_path)
    assert split.origin(0) == "ant/1.jpg"
    with pytest.raises(UnusableImageError, match=reason):
        split.read(0)


def test_a_file_that_vanished(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    split = opened(tmp_path)
    (tmp_path / "ant" / "1.jpg").unlink()
    with pytest.raises(UnusableImageError, match="No such file"):
        split.read(0)


def test_the_limit_is_the_decoders() -> None:
    assert MAX_PIXELS == DECODER_LIMIT
