"""Plain values and `a.b=c` overrides to a typed, frozen configuration, with every error reported at once."""

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

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
        raise ConfigError(f"{source}: expected a mapping of settings at the top, found {type(values).__name__}")
    try:
        # JSON mode: a list fills a tuple field, while the strict rules still refuse '3' for an int and 1 for a bool.
        return config_class.model_validate_json(json.dumps(values))
    except ValidationError as error:
        lines = [_explain(problem, config_class=config_class, values=values) for problem in error.errors()]
        raise ConfigError(problem_report(source, lines)) from None
    except TypeError as error:
        raise ConfigError(f"{source}: {error}") from None


def problem_report(source: str, lines: Sequence[str]) -> str:
    """The paragraph that lists configuration problems."""
    count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
    return "\n".join([f"{source}: {count} in the configuration:", *(f"  {line}" for line in lines)])


def apply_overrides(values: Any, *, overrides: Sequence[str]) -> Any:
    """Return a copy of `values` with every `a.b=c` set, creating mappings on the way; `c` is read as YAML."""
    result = json.loads(json.dumps(values))
    for text in overrides:
        path, equals, raw = text.partition("=")
        if not equals or not all(path.split(".")):
            raise ConfigError(f"override {text!r}: write it as key=value or section.key=value, for example optim.lr=1e-3")
        *parents, last = path.split(".")
        node = result
        for part in parents:
            node = _child(node, part, create=True, override=text)
        _assign(node, last, parse_yaml(raw, source=f"override {text!r}"), override=text)
    return result


def _child(node: Any, part: str, *, create: bool, override: str) -> Any:
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return node[int(part)]
    if isinstance(node, dict):
        if node.get(part) is None and create:
            node[part] = {}
        return node[part]
    raise ConfigError(f"override {override!r}: {part!r} lies below a value that is not a mapping")


def _assign(node: Any, key: str, value: Any, *, override: str) -> None:
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        node[int(key)] = value
    elif isinstance(node, dict):
        node[key] = value
    else:
        raise ConfigError(f"override {override!r}: {key!r} lies below a value that is not a mapping")


def _explain(problem: Any, *, config_class: type[Config], values: Any) -> str:
    location, owner = _locate(problem["loc"], config_class=config_class, values=values)
    path = ".".join(location)
    kind = problem["type"]
    if kind == "extra_forbidden":
        return f"{path}: unknown key{_suggestion(location[-1], owner)}"
    if kind == "missing":
        return f"{path}: required, but not given"
    if kind == "union_tag_not_found":
        return f"{path}.kind: required, one of {problem['ctx']['discriminator'] and _tags(owner, location[-1])}"
    if kind == "union_tag_invalid":
        return f"{path}.kind: {problem['ctx']['tag']!r} is not one of {problem['ctx']['expected_tags']}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = "" if isinstance(given, dict | list) or kind == "value_error" else f", got {given!r}"
    return f"{path or 'configuration'}: {message[:1].lower()}{message[1:]}{shown}"


def _locate(loc: Sequence[str | int], *, config_class: type[Config], values: Any) -> tuple[list[str], type[Config] | None]:
    """Drop the union tags that pydantic puts into a location; return the path and the class owning its last key."""
    path: list[str] = []
    owner: type[Config] | None = config_class
    annotation: Any = config_class
    node = values
    for part in loc:
        classes = list(_config_classes(annotation))
        if isinstance(part, str) and isinstance(node, dict) and part not in node and node.get("kind") == part:
            annotation = next((c for c in classes if c.model_fields["kind"].default == part), None)
            continue
        path.append(str(part))
        owner = classes[0] if classes and isinstance(node, dict) and _is_section(annotation) else None
        annotation = _annotation_below(annotation, part)
        node = _value_below(node, part)
    return path, owner


def _is_section(annotation: Any) -> bool:
    """Whether the annotation is one configuration class (perhaps optional), not a container of them."""
    return get_origin(_plain(annotation)) not in (dict, list, tuple)


def _plain(annotation: Any) -> Any:
    """Unwrap `Annotated[X, ...]` and `X | None` down to `X`."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        others = [a for a in get_args(annotation) if a is not type(None)]
        return _plain(others[0]) if len(others) == 1 else annotation
    return annotation


def _config_classes(annotation: Any) -> Iterator[type[Config]]:
    """Every configuration class that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in get_args(annotation):
        yield from _config_classes(argument)


def _annotation_below(annotation: Any, part: str | int) -> Any:
    plain = _plain(annotation)
    if get_origin(plain) in (dict, list, tuple):
        arguments = [a for a in get_args(plain) if a is not Ellipsis]
        return arguments[-1] if arguments else None
    for config_class in _config_classes(annotation):
        if part in config_class.model_fields:
            # Pydantic keeps a discriminated union's members in the plain annotation.
            return config_class.model_fields[str(part)].annotation
    return None


def _value_below(node: Any, part: str | int) -> Any:
    if isinstance(node, dict):
        return node.get(part)
    if isinstance(node, list) and isinstance(part, int) and part < len(node):
        return node[part]
    return None


def _suggestion(key: str, owner: type[Config] | None) -> str:
    known = list(owner.model_fields) if owner else []
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _tags(owner: type[Config] | None, key: str) -> str:
    classes = _config_classes(owner.model_fields[key].annotation) if owner and key in owner.model_fields else ()
    return ", ".join(repr(c.model_fields["kind"].default) for c in classes)
