"""Files replaced as a whole, and one holder of a working folder at a time."""

import os
from pathlib import Path

import numpy as np
import pytest

from vitscale.config import DataError, UsageError
from vitscale_data_tools.atomic import locked_folder, output_errors, replace_array, replace_file


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for data in (b"1", b"22"):
        replace_file(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["a"]


def test_an_array_is_read_back_and_never_an_object(tmp_path: Path) -> None:
    table = np.array([(1, 2)], [("a", "<u8"), ("b", "<u4")])
    replace_array(tmp_path / "t.npy", table)
    assert np.array_equal(np.load(tmp_path / "t.npy", mmap_mode="r", allow_pickle=False), table)
    with pytest.raises(ValueError, match="pickle"):
        replace_array(tmp_path / "o.npy", np.array([{}], object))
    assert os.listdir(tmp_path) == ["t.npy"]


def test_a_draft_that_a_killed_process_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").write_bytes(b"half")
    replace_file(tmp_path / "a", b"whole")
    assert os.listdir(tmp_path) == ["a"]


def test_the_old_file_stays_where_the_new_one_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "a", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"out: cannot be written: No space left on device\. Free"), output_errors(Path("out")):
        replace_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_folder_has_one_holder_and_the_lock_ends_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "work"
    with (
        locked_folder(folder),
        pytest.raises(UsageError, match=r"out/work: another process is working there"),
        locked_folder(folder),
    ):
        pass
    with locked_folder(folder):
        pass
