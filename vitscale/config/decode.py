"""Plain values and `a.b=c` overrides to a typed, frozen configuration, with every error reported at once."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vitscale.config.base import Config
from vitscale.config.errors import ConfigError
from vitscale.config.yaml_text import parse_yaml, read_yaml

C = TypeVar("C", bound=Config)


def decode_file(config_class: type[C], *, path: Path, overrides: Sequence[str] = ()) -> C:
    """Read `path`, apply the overrides in order and decode. Raises `ConfigError` listing every problem."""
    return decode(config_class, values=apply_overrides(read_yaml(path), overrides=overrides), source=str(path))


def decode(config_class: type[C], *, values: Any, source: str) -> C:
    """Decode plain values into `config_class`. Raises `ConfigError`, one line per problem, each with its dotted path."""
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise ConfigError(f"{source}: expected a mapping of settings at the top, found {found}")
    try:
        # JSON mode: a list fills a tuple field, while the strict rules still refuse '3' for an int and 1 for a bool.
        return config_class.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError(problem_report(source, _explain(error, config_class=config_class))) from None


def problem_report(source: str, lines: Sequence[str]) -> str:
    """The paragraph that lists configuration problems."""
    count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
    return "\n".join([f"{source}: {count} in the configuration:", *(f"  {line}" for line in lines)])


def apply_overrides(values: Any, *, overrides: Sequence[str]) -> Any:
    """`values` with every `a.b=c` set in turn, mappings created on the way; `c` is read as YAML.

    An item of a list is named by its position, as in `sizes.0=224`. Raises `ConfigError` naming the override.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise ConfigError(f"override {override!r}: write it as key=value or section.key=value, for example optim.lr=1e-3")
        value = parse_yaml(text, source=f"override {override!r}")
        values = _replaced(values, keys, value=value, override=override)
    return values


def _replaced(node: Any, keys: Sequence[str], *, value: Any, override: str) -> Any:
    """A copy of `node` in which `value` stands below `keys`."""
    if not keys:
        return value
    key, *rest = keys
    if node is None or isinstance(node, dict):
        below = (node or {}).get(key)
        return {**(node or {}), key: _replaced(below, rest, value=value, override=override)}
    if not isinstance(node, list):
        raise ConfigError(f"override {override!r}: {key!r} lies below the value {node!r}, which has no settings of its own")
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(f"override {override!r}: {key!r} is not a position in a list of {len(node)}; positions count from 0")
    index = int(key)
    return [*node[:index], _replaced(node[index], rest, value=value, override=override), *node[index + 1 :]]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a problem is: its dotted path, the class that owns the last key, and the type expected there."""

    path: str
    owner: type[Config] | None
    annotation: Any


def _explain(error: ValidationError, *, config_class: type[Config]) -> list[str]:
    # One line per place: pydantic reports each branch of `int | Literal["auto"]` as a problem of its own.
    found: dict[str, list[ErrorDetails]] = {}
    places: dict[str, _Place] = {}
    for problem in error.errors():
        place = _locate(problem["loc"], config_class=config_class)
        places[place.path] = place
        found.setdefault(place.path, []).append(problem)
    return [_explain_place(places[path], problems) for path, problems in found.items()]


def _explain_place(place: _Place, problems: Sequence[ErrorDetails]) -> str:
    first = problems[0]
    context = first.get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            return f"{place.path}: unknown key{_suggestion(str(first['loc'][-1]), place.owner)}"
        case "missing":
            return f"{place.path}: required, but not given"
        case "union_tag_not_found":
            tags = [repr(tag) for member in _members(place.annotation) for tag in _tags(member)]
            return f"{place.path}.kind: required, one of {', '.join(tags)}"
        case "union_tag_invalid":
            return f"{place.path}.kind: {context['tag']!r} is not one of {context['expected_tags']}"
        case "value_error":
            return f"{place.path or 'configuration'}: {first['msg'].removeprefix('Value error, ')}"
        case _:
            expected = " or ".join(dict.fromkeys(_expectation(problem["msg"]) for problem in problems))
            return f"{place.path or 'configuration'}: expected {expected}, got {_shown(first['input'])}"


def _locate(location: Sequence[str | int], *, config_class: type[Config]) -> _Place:
    """Follow pydantic's location through the annotations, dropping the names of union branches that it puts between keys."""
    path: list[str] = []
    owner: type[Config] | None = None
    annotation: Any = config_class
    for part in location:
        annotation = _plain(annotation)
        members = _members(annotation)
        branch = next((member for member in members if len(members) > 1 and part in _tags(member)), None)
        if branch is not None:
            annotation = branch
            continue
        if not members and get_origin(annotation) not in (dict, list, tuple):
            break
        path.append(str(part))
        owner = members[0] if members else None
        annotation = _below(annotation, str(part))
    return _Place(path=".".join(path), owner=owner, annotation=annotation)


def _plain(annotation: Any) -> Any:
    """Unwrap `Annotated[X, ...]` and `X | None` down to `X`."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        others = [a for a in get_args(annotation) if a is not NoneType]
        return _plain(others[0]) if len(others) == 1 else annotation
    return annotation


def _members(annotation: Any) -> list[type[Config]]:
    """The configuration classes that a value here may be one of; empty where it is anything else."""
    plain = _plain(annotation)
    branches = get_args(plain) if get_origin(plain) in (Union, UnionType) else (plain,)
    return [branch for branch in map(_plain, branches) if isinstance(branch, type) and issubclass(branch, Config)]


def _tags(member: type[Config]) -> tuple[Any, ...]:
    """The values of `kind` that select a member of a union."""
    return get_args(member.model_fields["kind"].annotation) if "kind" in member.model_fields else ()


def _below(annotation: Any, key: str) -> Any:
    members = _members(annotation)
    if members:
        field = members[0].model_fields.get(key)
        return field.annotation if field else None
    arguments = [argument for argument in get_args(annotation) if argument is not Ellipsis]
    return arguments[-1] if arguments else None


def _suggestion(key: str, owner: type[Config] | None) -> str:
    known = list(owner.model_fields) if owner else []
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _expectation(message: str) -> str:
    """Pydantic's sentence as the end of "expected ..."."""
    bare = message.removeprefix("Input should be ")
    return f"a number {bare}" if bare.startswith(("greater", "less")) else bare[:1].lower() + bare[1:]


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value) if isinstance(value, str) else json.dumps(value)
