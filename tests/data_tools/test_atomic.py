"""Files replaced as a whole, and one holder of a working folder at a time."""

import fcntl
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from vitscale.config import DataError, UsageError
from vitscale_data_tools.atomic import LOCK_NAME, check_output, locked_folder, output_errors, replace_array, replace_file, write_durably


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
    assert os.listdir(tmp_path) == ["a"], "what a full disk has taken of the new file is given back"


def test_a_file_is_written_once(tmp_path: Path) -> None:
    write_durably(tmp_path / "a", b"1")
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "a", b"2")


def test_an_output_is_tried_before_the_work(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "report.json")
    assert os.listdir(tmp_path / "new") == []
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/report\.json: cannot be written"):
        check_output(tmp_path / "file" / "report.json")
    with pytest.raises(DataError, match="new: cannot be written: Is a directory"):
        check_output(tmp_path / "new")


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


def test_a_lock_that_its_holder_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two who come later hold a lock each, the one on the removed file, the other on the new one."""
    flock = fcntl.flock

    def finish_meanwhile(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        shutil.rmtree(tmp_path / "work")

    monkeypatch.setattr(fcntl, "flock", finish_meanwhile)
    with pytest.raises(UsageError, match="another process is working there"), locked_folder(tmp_path / "work"):
        pytest.fail("must not be entered")
    monkeypatch.undo()
    with locked_folder(tmp_path / "work"):
        assert os.listdir(tmp_path / "work") == [LOCK_NAME]
