"""Images in files: what is read, what is told of their size, and when an interrupted pack sees a change."""

import os
from pathlib import Path

import numpy as np
import pytest

from vitscale_data_tools.sources.files import find_files, suffix
from vitscale_data_tools.split import UnusableImageError


def test_origin_and_location_may_differ(tmp_path: Path) -> None:
    (tmp_path / "copy.JPG").write_bytes(b"abc")
    (tmp_path / "plain").write_bytes(b"0123456789" * 60)
    images = find_files(tmp_path, origins=("https://example.org/1", "plain"), locations=(str(tmp_path / "copy.JPG"), "plain"))
    assert [images.origin(i) for i in range(2)] == ["https://example.org/1", "plain"]
    assert (images.read(0).image, images.read(0).extension) == (b"abc", "jpg")
    assert (len(images.read(1).image), images.read(1).extension) == (600, None)
    assert images.tar_bytes().tolist() == [1024, 1536]
    assert images.take(np.array([1])).origin(0) == "plain"
    assert images.take(np.array([1])).read(0) == images.read(1)


@pytest.mark.parametrize("name", ["none.jpg", "folder", "null\0.jpg", "x" * 300])
def test_what_cannot_be_read_counts_as_empty_and_gives_its_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    images = find_files(tmp_path, origins=(name,))
    with pytest.raises(UnusableImageError, match=r"No such file|Is a directory|null|name too long"):
        images.read(0)


def test_identity_follows_content_names_and_age(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    os.utime(path, ns=(1, 1))
    first = find_files(tmp_path, origins=("a",)).identity()
    assert find_files(tmp_path, origins=("a",)).identity() == first
    os.utime(path, ns=(2, 2))
    assert find_files(tmp_path, origins=("a",)).identity() != first
    path.write_bytes(b"abcd")
    os.utime(path, ns=(1, 1))
    assert find_files(tmp_path, origins=("a",)).identity() != first


def test_a_name_of_no_encoding_has_an_identity(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.jpg")
    (tmp_path / name).write_bytes(b"abc")
    images = find_files(tmp_path, origins=(name,))
    assert images.read(0).image == b"abc"
    assert images.identity()


def test_suffixes() -> None:
    assert [suffix(path) for path in ("a/b.JPG", "a.b/c", "x.tar.gz", "a/.hidden", "plain")] == [".jpg", "", ".gz", "", ""]
