"""Image folders: what is packed, in which order, and what is refused with the names of the files."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.data_tools.images import image_bytes, write_image_folder
from vitscale.config import DataError
from vitscale_data_tools.sources.image_folder import open_image_folder
from vitscale_data_tools.split import Split, UnusableImageError


def opened(folder: Path) -> Split:
    (split,) = open_image_folder(folder)
    return split


def origins(split: Split) -> list[str]:
    return [split.images.origin(index) for index in range(split.num_samples)]


def test_classes_and_files_in_order_with_unchanged_bytes(tmp_path: Path) -> None:
    files = write_image_folder(tmp_path)
    split = opened(tmp_path)
    assert split.classes == ("ant", "bee (wild)", "cat")
    assert origins(split) == sorted(files)
    for index, path in enumerate(sorted(files)):
        label, data = files[path]
        assert split.images.read(index).image == data
        assert split.members(index) == {"cls": b"%d" % label}
        assert split.images.tar_bytes()[index] == 512 + -(-len(data) // 512) * 512
    assert [split.images.read(i).extension for i in range(6)] == ["jpg", "jpg", "png", "png", "webp", "jpg"]
    assert split.notes == ()


def test_a_part_of_it_reads_the_same(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    split = opened(tmp_path)
    part = split.take(np.array([4, 1]))
    for position, index in enumerate((4, 1)):
        assert part.images.read(position) == split.images.read(index)
        assert part.members(position) == split.members(index)
        assert part.key(position) == split.key(index)
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
    assert origins(split)[:3] == ["ant/1.jpg", "ant/deep er/2.JPEG", "ant/same.jpg"]
    assert split.notes == ("passing over files that are no images: ant/loop",)


def test_a_dangling_link_is_an_unusable_image(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "ant" / "0.jpg").symlink_to(tmp_path / "none.jpg")
    split = opened(tmp_path)
    with pytest.raises(UnusableImageError, match="No such file"):
        split.images.read(0)


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


def test_a_file_that_vanished(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    split = opened(tmp_path)
    (tmp_path / "ant" / "1.jpg").unlink()
    with pytest.raises(UnusableImageError, match="No such file"):
        split.images.read(0)
