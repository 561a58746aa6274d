"""Sequential reads in ranges give the file's bytes and sha256, however the reads and the ranges are cut."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitscale.config import DataError
from vitscale.data.storage.storage import open_storage
from vitscale_data_tools.range_file import RangeFile

DATA = bytes(range(256)) * 5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 700), max_size=12), range_bytes=st.integers(1, 2000))
def test_reads_of_any_size(tmp_path: Path, sizes: list[int], range_bytes: int) -> None:
    (tmp_path / "f").write_bytes(DATA)
    file = RangeFile(open_storage(tmp_path), "f", range_bytes=range_bytes)
    read = b""
    for size in sizes:
        part = file.read(size)
        assert len(part) == min(size, len(DATA) - len(read))
        read += part
        assert file.position == len(read)
    read += file.read(len(DATA) + 1)
    assert read == DATA
    assert file.read(1) == b""
    assert file.sha256 == hashlib.sha256(DATA).hexdigest()


def test_a_file_that_shrinks_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    file = RangeFile(open_storage(tmp_path), "f", range_bytes=512)
    file.read(512)
    (tmp_path / "f").write_bytes(DATA[:600])
    with pytest.raises(DataError, match="cut short"):
        file.read(512)
