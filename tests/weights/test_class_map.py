from pathlib import Path

import pytest

from vitscale.config import ConfigError
from vitscale.weights.class_map import read_class_map


@pytest.mark.parametrize("text", ["3\n0\n21840\n", " 3 \r\n0\r\n21840"])
def test_reads_a_number_from_each_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "map.txt"
    path.write_bytes(text.encode())
    assert read_class_map(str(path)) == (3, 0, 21840)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"3\nn01440764\n", "line 2 of .* is 'n01440764', and each is the number of a class, from 0"),
        (b"3\n-1\n", "line 2 of .* is '-1'"),
        (b"\xff\xfe\x00", "is no text"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_no_map_is_told(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "map.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"init_from.class_map: .*{problem}"):
        read_class_map(str(path))
