"""Strictness, every error at once with its path and the nearest key, and overrides."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from vitscale.config import Config, ConfigError, apply_overrides, decode, decode_file, dump_yaml, parse_yaml


class Circle(Config):
    kind: Literal["circle"] = "circle"
    radius: float = Field(gt=0)
    tags: tuple[str, ...] = ()


class Square(Config):
    kind: Literal["square", "box"] = "square"
    side: int = 1


Shape = Annotated[Circle | Square, Field(discriminator="kind")]


class Group(Config):
    lanes: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    clip: float | None = Field(default=1.0, gt=0)
    shape: Shape = Square()
    maybe: Shape | None = None
    shapes: tuple[Shape, ...] = ()
    by_name: dict[str, Shape] = {}
    squares: dict[str, Square] = {}


class Top(Config):
    name: str = Field(pattern="^[a-z]+$")
    flag: bool = False
    group: Group = Group()


class Pair(Config):
    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> "Pair":
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


def problems_of(values: Any, *, config_class: type[Config] = Top) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        decode(config_class, values=values, source="run.yaml")
    heading, *lines = str(refused.value).splitlines()
    assert heading == f"run.yaml: {len(lines)} problem{'s' * (len(lines) > 1)} in the configuration:"
    return [line.removeprefix("  ") for line in lines]


ONE_PROBLEM: list[tuple[Any, str]] = [
    ({}, "name: required, but not given"),
    ({"name": 3}, "name: expected a valid string, got 3"),
    ({"name": "A"}, "name: expected string should match pattern '^[a-z]+$', got 'A'"),
    ({"name": "a", "flag": 1}, "flag: expected a valid boolean, got 1"),
    ({"name": "a", "flag": "true"}, "flag: expected a valid boolean, got 'true'"),
    ({"name": "a", "flga": True}, "flga: unknown key; did you mean 'flag'?"),
    ({"name": "a", "zzz": True}, "zzz: unknown key; known here: name, flag, group"),
    ({"name": "a", "group": None}, "group: expected an object, got null"),
    ({"name": "a", "group": [1]}, "group: expected an object, got a list"),
    ({"name": {"a": 1}}, "name: expected a valid string, got a mapping"),
]

GROUP_PROBLEM: list[tuple[Any, str]] = [
    ({"lanes": "foo"}, "lanes: expected a valid integer or 'auto', got 'foo'"),
    ({"lanes": 0}, "lanes: expected a number greater than or equal to 1 or 'auto', got 0"),
    ({"lanes": True}, "lanes: expected a valid integer or 'auto', got true"),
    ({"lanes": 4.0}, "lanes: expected a valid integer or 'auto', got 4.0"),
    ({"precision": "fp16"}, "precision: expected 'fp32' or 'bf16', got 'fp16'"),
    ({"clip": -1}, "clip: expected a number greater than 0, got -1"),
    ({"clip": float("inf")}, "clip: expected a finite number, got Infinity"),
    ({"clip": "1"}, "clip: expected a valid number, got '1'"),
    ({"shape": {"side": 2}}, "shape.kind: required, one of 'circle', 'square', 'box'"),
    ({"shape": {"kind": "oval"}}, "shape.kind: 'oval' is not one of 'circle', 'square', 'box'"),
    ({"shape": {"kind": "circle"}}, "shape.radius: required, but not given"),
    ({"shape": {"kind": "box", "side": "2"}}, "shape.side: expected a valid integer, got '2'"),
    ({"shape": {"kind": "circle", "radius": 1, "radios": 2}}, "shape.radios: unknown key; did you mean 'radius'?"),
    ({"shape": {"kind": "circle", "radius": 1, "side": 2}}, "shape.side: unknown key; known here: kind, radius, tags"),
    ({"shape": {"kind": "circle", "radius": 1, "tags": ["a", 2]}}, "shape.tags.1: expected a valid string, got 2"),
    ({"maybe": {"kind": "square", "sid": 2}}, "maybe.sid: unknown key; did you mean 'side'?"),
    ({"maybe": {"side": 2}}, "maybe.kind: required, one of 'circle', 'square', 'box'"),
    ({"maybe": 3}, "maybe: expected an object, got 3"),
    ({"shapes": [{"kind": "square"}, {"kind": "square", "sid": 1}]}, "shapes.1.sid: unknown key; did you mean 'side'?"),
    ({"shapes": [{}]}, "shapes.0.kind: required, one of 'circle', 'square', 'box'"),
    ({"by_name": {"circle": {"kind": "circle", "radius": 0}}}, "by_name.circle.radius: expected a number greater than 0, got 0"),
    ({"by_name": {"x": {"side": 1}}}, "by_name.x.kind: required, one of 'circle', 'square', 'box'"),
    ({"squares": {"x": {"sid": 1}}}, "squares.x.sid: unknown key; did you mean 'side'?"),
]


@pytest.mark.parametrize(("values", "message"), ONE_PROBLEM + [({"name": "a", "group": v}, f"group.{m}") for v, m in GROUP_PROBLEM])
def test_one_problem(values: Any, message: str) -> None:
    assert problems_of(values) == [message]


def test_every_problem_is_reported_at_once() -> None:
    values = {"nam": 1, "flag": 2, "group": {"lanes": "x", "shape": {"kind": "circle", "radios": 1}}}
    assert problems_of(values) == [
        "name: required, but not given",
        "flag: expected a valid boolean, got 2",
        "group.lanes: expected a valid integer or 'auto', got 'x'",
        "group.shape.radius: required, but not given",
        "group.shape.radios: unknown key; did you mean 'radius'?",
        "nam: unknown key; did you mean 'name'?",
    ]


def test_a_check_between_fields() -> None:
    assert problems_of({"low": 2, "high": 1}, config_class=Pair) == ["configuration: low must not be above high"]


@pytest.mark.parametrize(("values", "found"), [(None, "nothing"), ([1], "list"), ("a", "str")])
def test_the_top_must_be_a_mapping(values: Any, found: str) -> None:
    with pytest.raises(ConfigError, match=f"run.yaml: expected a mapping of settings at the top, found {found}"):
        decode(Top, values=values, source="run.yaml")


def test_what_is_allowed() -> None:
    values = {"name": "a", "group": {"clip": 1, "lanes": 8, "shape": {"kind": "box"}, "shapes": [{"kind": "circle", "radius": 2}]}}
    config = decode(Top, values=values, source="run.yaml")
    assert config == Top(name="a", group=Group(clip=1.0, lanes=8, shape=Square(kind="box"), shapes=(Circle(radius=2.0),)))


NAMES = st.text("abc", min_size=1)
SHAPES = st.builds(Circle, radius=st.floats(1e-6, 1e6), tags=st.tuples(st.text())) | st.builds(Square, side=st.integers())
GROUPS = st.builds(
    Group,
    lanes=st.integers(1) | st.just("auto"),
    clip=st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    shape=SHAPES,
    maybe=st.none() | SHAPES,
    shapes=st.tuples(SHAPES, SHAPES),
    by_name=st.dictionaries(st.text(), SHAPES, max_size=2),
)


@given(st.builds(Top, name=NAMES, flag=st.booleans(), group=GROUPS))
def test_a_dumped_configuration_decodes_to_itself(config: Top) -> None:
    text = dump_yaml(config.model_dump(mode="json"))
    assert decode(Top, values=parse_yaml(text, source="dump"), source="dump") == config


OVERRIDES: list[tuple[Any, str, Any]] = [
    ({"a": 1}, "a=2", {"a": 2}),
    ({"a": 1}, "b.c=1e-3", {"a": 1, "b": {"c": 0.001}}),
    ({"a": {"b": 1, "c": 2}}, "a.b=no", {"a": {"b": "no", "c": 2}}),
    ({"a": None}, "a.b=1", {"a": {"b": 1}}),
    (None, "a.b=1", {"a": {"b": 1}}),
    ({"a": {"b": 1}}, "a=null", {"a": None}),
    ({"a": {"b": 1}}, "a=", {"a": None}),
    ({}, "a=[1, 2]", {"a": [1, 2]}),
    ({}, "a={b: 1}", {"a": {"b": 1}}),
    ({}, "a=x=y", {"a": "x=y"}),
    ({"a": [1, {"b": 2}]}, "a.1.b=3", {"a": [1, {"b": 3}]}),
    ({"a": [1, 2]}, "a.0=5", {"a": [5, 2]}),
]


@pytest.mark.parametrize(("values", "override", "expected"), OVERRIDES)
def test_override(values: Any, override: str, expected: Any) -> None:
    assert apply_overrides(values, overrides=[override]) == expected


def test_overrides_apply_in_order_and_leave_their_input_alone() -> None:
    values = {"a": {"b": 1}, "c": [1]}
    assert apply_overrides(values, overrides=["a.b=2", "a.d=3", "a.b=4", "c.0=9"]) == {"a": {"b": 4, "d": 3}, "c": [9]}
    assert values == {"a": {"b": 1}, "c": [1]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "write it as key=value"),
        ("=1", "write it as key=value"),
        ("a..b=1", "write it as key=value"),
        ("a.b=1", "'b' lies below the value 1"),
        ("c.1=1", "'1' is not a position in a list of 1"),
        ("c.x=1", "'x' is not a position in a list of 1"),
        ("c.²=1", "'²' is not a position in a list of 1"),
        ("a=[1", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        apply_overrides({"a": 1, "c": [1]}, overrides=[override])
    assert str(refused.value).startswith(f"override {override!r}: ")
    assert message in str(refused.value)


def test_a_file_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: abc\ngroup:\n  clip: 2\n")
    config = decode_file(Top, path=path, overrides=["group.clip=null", "flag=true", "group.shape={kind: circle, radius: 1}"])
    assert config == Top(name="abc", flag=True, group=Group(clip=None, shape=Circle(radius=1.0)))
    with pytest.raises(ConfigError, match=r"run\.yaml: 1 problem in the configuration:\n  grup: unknown key; did you mean 'group'\?"):
        decode_file(Top, path=path, overrides=["grup.clip=3"])
