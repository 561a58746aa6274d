"""The base of every configuration class: frozen, strict, closed to unknown keys, documented by attribute docstrings."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


class Config(BaseModel):
    """A frozen group of settings. The docstring under a field is its help text and its JSON Schema description.

    Every key can change what a run computes unless it is marked with `operational`: a resume refuses a change of the
    former and accepts a change of the latter.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


OPERATIONAL: dict[str, Any] = {"operational": True}
"""`json_schema_extra` of a field that says how a run is carried out, never what it computes (logging, workers, ranks)."""

Auto = Literal["auto"]
"""The value of a field that the plan fills in."""


def is_operational(field: FieldInfo) -> bool:
    """Whether a run may be continued with another value of this field."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("operational"))


def binding_values(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of every leaf that decides what the run computes, in field order."""
    for name, field in type(config).model_fields.items():
        if is_operational(field):
            continue
        yield from _leaves(getattr(config, name), f"{prefix}{name}")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Config):
        yield from binding_values(value, prefix=f"{path}.")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list | tuple) and any(isinstance(item, Config) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{index}")
    else:
        yield path, value
