"""Core scalars as people expect them, what is refused and where, and that every dump reads back."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vitscale.config import ConfigError, dump_yaml, parse_yaml, read_yaml

SCALARS: list[tuple[str, Any]] = [
    ("1e-3", 0.001),
    ("3E-4", 0.0003),
    ("1.", 1.0),
    (".5", 0.5),
    ("-2.5e+1", -25.0),
    ("1e5", 100000.0),
    (".inf", math.inf),
    ("-.INF", -math.inf),
    ("60_000", 60000),
    ("1_", "1_"),
    ("010", 10),
    ("08", 8),
    ("0o17", 15),
    ("0x1F", 31),
    ("-7", -7),
    ("+7", 7),
    ("12:30", "12:30"),
    ("1.2.3", "1.2.3"),
    ("2026-01-01", "2026-01-01"),
    ("no", "no"),
    ("on", "on"),
    ("Yes", "Yes"),
    ("true", True),
    ("False", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("'1'", "1"),
    ('"null"', "null"),
    ("e5", "e5"),
    ("1e", "1e"),
    ("auto", "auto"),
    ("<<", "<<"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars(text: str, value: Any) -> None:
    parsed = parse_yaml(f"a: {text}", source="test")["a"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_not_a_number() -> None:
    assert math.isnan(parse_yaml(".nan", source="test"))


REFUSED = [
    ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' is given twice"),
    ("a: {b: 1, b: 2}", "line 1, column 11: the key 'b' is given twice"),
    ("a: &x [1]\nb: *x", "line 2, column 4: aliases are not supported"),
    ("a: &x [*x]", "line 1, column 8: aliases are not supported"),
    ("1: 2", "line 1, column 1: a key must be text"),
    ("null: 2", "line 1, column 1: a key must be text"),
    ("{[1]: 2}", "line 1, column 2: a key must be text"),
    ("a: !!binary aGk=", "line 1, column 4: the tag 'tag:yaml.org,2002:binary' is not supported"),
    ("a: !!python/name:os.system x", "is not supported"),
    ("a: !mine 1", "the tag '!mine' is not supported"),
    ("a: [1", "line 1, column 6: while parsing a flow sequence expected ',' or ']'"),
    ("a: 1\n---\nb: 2", "line 2, column 1: expected a single document in the stream but found another document"),
    ("a: \x07", "#x0007"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_refused_and_where(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_yaml(text, source="run.yaml")
    assert str(refused.value).startswith("run.yaml: not valid YAML")
    assert message in str(refused.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot read the configuration: No such file or directory"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        read_yaml(tmp_path / "latin.yaml")


SCALAR_VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALAR_VALUES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


@given(VALUES)
@example({"a": "1e-3", "b": "no", "c": "", "d": "08", "e": "~", "f": "- x", "g": "a: b", "h": "#", "i": "0x1F", "j": "*x"})
@example({"a": 1e-05, "b": 1e22, "c": 0.1, "d": -0.0, "e": math.inf, "1": [[1, 2], [], {}]})
@example({"": {"null": "", "<<": "=", "\x85": "\u2028 \n\n x"}})
@example("word " * 60)
def test_a_dump_reads_back_to_the_same_value(value: Any) -> None:
    again = parse_yaml(dump_yaml(value), source="dump")
    assert repr(again) == repr(value)


def test_a_dump_keeps_the_order_and_repeats_shared_values() -> None:
    shared = [1, 2]
    assert dump_yaml({"b": shared, "a": shared}) == "b: [1, 2]\na: [1, 2]\n"
