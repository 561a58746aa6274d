"""A folder is there whole or not at all, and nothing of anybody else's is replaced."""

from pathlib import Path

import pytest

from vitscale.config import ConfigError, UsageError
from vitscale.train.staging import staged_folder


def fill(final: Path, text: str) -> None:
    with staged_folder(final, replaceable=("a",)) as folder:
        (folder / "a").write_text(text)
        assert not final.exists() or (final / "a").read_text() != text


def test_it_appears_when_it_is_whole_and_replaces_an_older_one(tmp_path: Path) -> None:
    final = tmp_path / "new" / "out"
    for text in ("first", "second"):
        fill(final, text)
        assert (final / "a").read_text() == text
    assert [path.name for path in final.parent.iterdir()] == ["out"]


def test_an_error_leaves_nothing_and_keeps_the_older_one(tmp_path: Path) -> None:
    fill(tmp_path / "out", "first")
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "out", replaceable=("a",)) as folder:
        (folder / "a").write_text(str(1 // 0))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "first"


def test_what_holds_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    with pytest.raises(UsageError, match="holds something else"):
        fill(tmp_path / "out", "x")
    assert (tmp_path / "out" / "notes").read_text() == "mine"


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        fill(tmp_path / "file" / "out", "x")
