"""What every configuration class promises: frozen, closed, documented, and which of its settings bind a resume."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from vitscale.config import OPERATIONAL, Config, binding_values


class Inner(Config):
    kind: Literal["inner"] = "inner"
    x: int = 1
    """How much of it."""
    note: str = Field(default="", json_schema_extra=OPERATIONAL)


class Outer(Config):
    """Everything together."""

    inner: Inner = Inner()
    hidden: Inner = Field(default=Inner(), json_schema_extra=OPERATIONAL)
    several: tuple[Inner, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    by_name: dict[str, Inner] = {}
    maybe: Inner | None = None
    rate: Annotated[float, Field(gt=0)] = 0.5


def test_binding_values_are_the_leaves_that_decide_what_is_computed() -> None:
    outer = Outer(several=(Inner(x=2), Inner(x=3, note="n")), by_name={"a": Inner(x=4)})
    assert dict(binding_values(outer)) == {
        "inner.kind": "inner",
        "inner.x": 1,
        "several.0.kind": "inner",
        "several.0.x": 2,
        "several.1.kind": "inner",
        "several.1.x": 3,
        "sizes": (1, 2),
        "by_name.a.kind": "inner",
        "by_name.a.x": 4,
        "maybe": None,
        "rate": 0.5,
    }


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Outer().rate = 1.0  # type: ignore[misc]


def test_defaults_are_checked_too() -> None:
    class Wrong(Config):
        rate: float = Field(default=-1.0, gt=0)

    with pytest.raises(ValidationError, match="greater than 0"):
        Wrong()


def test_docstrings_are_the_schema_descriptions() -> None:
    schema = Outer.model_json_schema()
    assert schema["description"] == "Everything together."
    assert schema["$defs"]["Inner"]["properties"]["x"]["description"] == "How much of it."
    assert schema["additionalProperties"] is False
