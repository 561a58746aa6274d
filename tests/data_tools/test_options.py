"""Options of sources: url roots, options without meaning, and the library that may be missing."""

import sys
from pathlib import Path

import pytest

from vitscale.config import DataError, UsageError
from vitscale_data_tools.options import SourceOptions, UrlRoot, load_pyarrow, parse_url_root


def test_a_url_root_is_cut_at_its_last_equals_sign() -> None:
    assert parse_url_root("https://a.org/?q=1&x==/data/x") == UrlRoot(prefix="https://a.org/?q=1&x=", folder=Path("/data/x"))


@pytest.mark.parametrize("text", ["", "https://a.org/", "a.org/=/data", "https://a.org/=", "=/data"])
def test_what_is_no_url_root(text: str) -> None:
    with pytest.raises(UsageError, match="expected PREFIX=FOLDER"):
        parse_url_root(text)


def test_an_option_without_meaning_is_refused() -> None:
    SourceOptions().refuse_unless(frozenset(), source="idx")
    SourceOptions(label_column="a").refuse_unless(frozenset({"label_column"}), source="table")
    with pytest.raises(UsageError, match="--label-column has no meaning for the source idx"):
        SourceOptions(label_column="a").refuse_unless(frozenset(), source="idx")
    with pytest.raises(UsageError, match="--url-root has no meaning"):
        SourceOptions(url_roots=(UrlRoot(prefix="s://", folder=Path("x")),)).refuse_unless(frozenset({"label_column"}), source="idx")


def test_a_machine_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"t\.parquet: reading it needs pyarrow. Install it with `pip install 'vitscale\[tables\]'`"):
        load_pyarrow(needed_for="t.parquet")
