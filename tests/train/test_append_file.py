"""A log on a disk that fills up: nothing is lost while memory lasts, no record is broken, and the user is told once."""

import errno
import os
from pathlib import Path

import pytest

from tests.limits import largest_file
from vitscale.train.append_file import AppendFile


def test_records_are_in_the_file_at_once_behind_those_of_earlier_attempts(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log"
    for attempt in (b"1", b"2"):
        file = AppendFile(path, warn=pytest.fail)
        file.write(b"a" + attempt + b"\n")
        assert path.read_bytes().endswith(b"a" + attempt + b"\n")
        file.write(b"b" + attempt + b"\n", durably=True)
        file.close()
        file.close()
    assert path.read_bytes() == b"a1\nb1\na2\nb2\n"


@pytest.mark.parametrize("room", range(0, 13))
def test_a_record_that_fitted_in_part_is_finished_when_there_is_room(tmp_path: Path, room: int) -> None:
    path, warnings = tmp_path / "log", []
    file = AppendFile(path, warn=warnings.append)
    file.write(b"first\n")
    with largest_file(6 + room):
        for record in (b"12345\n", b"67890\n"):
            file.write(record)
        assert path.read_bytes() == b"first\n12345\n67890\n"[: 6 + room]
        assert len(warnings) == (room < 12)
    file.write(b"last\n")
    file.close()
    assert path.read_bytes() == b"first\n12345\n67890\nlast\n"
    if room < 12:
        failed, recovered = warnings
        assert failed.startswith(f"{path} cannot be written: File too large. Training goes on")
        assert recovered == f"{path} can be written again, nothing is missing"


def test_of_more_than_memory_holds_the_oldest_are_dropped_and_counted(tmp_path: Path) -> None:
    path, warnings = tmp_path / "log", []
    file = AppendFile(path, warn=warnings.append, waiting_bytes=32)
    with largest_file(4):
        for number in range(10):
            file.write(b"record%d\n" % number)
    file.close()
    # The first is in the file in part already: without its end it would break what follows.
    assert path.read_bytes() == b"record0\nrecord7\nrecord8\nrecord9\n"
    assert warnings[1:] == [f"{path} can be written again; 6 of its records are lost"]


def test_what_still_waits_at_the_end_is_told() -> None:
    warnings: list[str] = []
    file = AppendFile(Path("/dev/full"), warn=warnings.append)
    for _ in range(3):
        file.write(b"record\n")
    file.close()
    assert warnings[1:] == ["/dev/full cannot be written: No space left on device; 3 of its records are lost"]


def test_a_record_that_was_to_survive_a_crash_is_synced_once_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AppendFile(tmp_path / "log", warn=lambda _: None)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with largest_file(0):
        file.write(b"event\n", durably=True)
    assert synced == []
    file.write(b"figures\n")
    assert len(synced) == 1
    file.write(b"figures\n")
    assert len(synced) == 1
    file.close()


def test_a_file_that_the_server_knows_no_more_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, warnings = tmp_path / "log", []
    file = AppendFile(path, warn=warnings.append)
    file.write(b"first\n")
    stale, write = os.stat(path).st_ino, os.write

    def write_unless_stale(descriptor: int, data: bytes) -> int:
        if os.fstat(descriptor).st_ino == stale:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_unless_stale)
    file.write(b"second\n")
    path.rename(tmp_path / "old")
    file.write(b"third\n")
    file.close()
    assert path.read_bytes() == b"second\nthird\n"
    assert len(warnings) == 2


def test_a_new_file_begins_with_a_whole_record(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = AppendFile(path, warn=lambda _: None)
    with largest_file(3):
        file.write(b"12345\n")
    path.rename(tmp_path / "old")
    file.write(b"67890\n")
    file.close()
    assert path.read_bytes() == b"12345\n67890\n"


@pytest.mark.parametrize("room", [0, 3])
def test_a_record_begins_anew_behind_what_somebody_else_has_appended(tmp_path: Path, room: int) -> None:
    """As the watchdog does to events.jsonl."""
    path = tmp_path / "log"
    file = AppendFile(path, warn=lambda _: None)
    file.write(b"first\n")
    with largest_file(6 + room):
        file.write(b"12345\n")
    with path.open("ab") as other:
        other.write(b"other\n")
    with largest_file(6 + room + 6 + 2):
        file.write(b"67890\n")
    file.write(b"last\n")
    file.close()
    assert path.read_bytes() == b"first\n" + b"123"[:room] + b"other\n12345\n67890\nlast\n"


def test_a_disk_that_fails_to_sync_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    file = AppendFile(tmp_path / "log", warn=warnings.append)

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    file.write(b"event\n", durably=True)
    file.close()
    assert all("Input/output error" in warning for warning in warnings)
    assert len(warnings) == 2


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        AppendFile(tmp_path / "file" / "log", warn=pytest.fail)
