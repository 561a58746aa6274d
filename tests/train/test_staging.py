"""A folder is there whole or not at all, and nothing of anybody else's is replaced."""

import contextlib
from pathlib import Path

import pytest

from vitscale.config import ConfigError, UsageError
from vitscale.train.staging import scratch_folder, staged_folder


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


def test_a_refusal_leaves_no_folder_above_that_was_not_there(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "run" / "export" / "timm") as folder:
        (folder / "a").write_text(str(1 // 0))
    assert not list((tmp_path / "run").iterdir())


def test_a_scratch_folder_lies_beside_and_is_removed(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "out") as scratch, staged_folder(tmp_path / "out") as folder:
        assert scratch.parent == folder.parent == tmp_path
        (scratch / "a").write_text("")
        (folder / "b").write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "b"]


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        fill(tmp_path / "file" / "out", "x")


@pytest.mark.parametrize("text", ["signed", "theirs"])
def test_a_folder_of_the_same_names_that_somebody_else_wrote_is_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text(text)
    refused = contextlib.nullcontext() if text == "signed" else pytest.raises(UsageError, match="holds something else")
    with refused, staged_folder(tmp_path / "out", replaceable=("a",), signature=("a", "signed")) as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "out" / "a").read_text() == ("new" if text == "signed" else "theirs")


def test_what_a_killed_process_left_is_removed_and_what_another_one_fills_is_not(tmp_path: Path) -> None:
    (tmp_path / ".out.tmp-0000").mkdir()
    (tmp_path / ".out.tmp-0000" / "a").write_text("half")
    with staged_folder(tmp_path / "out") as first, staged_folder(tmp_path / "out") as second:
        assert {path.name for path in tmp_path.iterdir()} == {first.name, second.name}
        (second / "a").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
