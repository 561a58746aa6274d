"""YAML text to plain values by the YAML 1.2 core rules, the ones people expect: `1e-3` is a number and `no` is a word."""

import re
from pathlib import Path
from typing import Any

import yaml

from vitscale.config.errors import ConfigError


def parse_yaml(text: str, *, source: str) -> Any:
    """Parse one YAML document of mappings with text keys, lists and core scalars: whatever comes back is also valid JSON.

    `source` names the text in the error. Raises `ConfigError` with line and column.
    """
    try:
        return yaml.load(text, Loader=_CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}: not valid YAML{where}: {' '.join(filter(None, (error.context, error.problem)))}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> Any:
    """Parse the YAML file at `path`. Raises `ConfigError` when it is missing, unreadable or not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot read the configuration: {reason}. Give the path of a run's YAML file.") from None
    return parse_yaml(text, source=str(path))


def dump_yaml(value: Any) -> str:
    """YAML text of plain values, keys in the order given, which `parse_yaml` reads back to an equal value."""
    return yaml.dump(value, Dumper=_CoreDumper, sort_keys=False, allow_unicode=True, width=120)


_TAG = "tag:yaml.org,2002:"

# Tag, pattern of the whole scalar, first characters it may have (PyYAML looks patterns up by the first character).
_CORE_SCALARS = (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    ("int", r"[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+", tuple("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        tuple("-+0123456789."),
    ),
)


class _CoreLoader(yaml.SafeLoader):
    """Reads core scalars only (YAML 1.1 reads `1e-3` as text, `no` as False, `12:30` as 750), unique text keys; no aliases or tags."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            # An alias may contain itself, or make a short file expand to gigabytes.
            raise _refusal("aliases are not supported; write the value out", mark=event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _refusal(f"the tag {event.tag!r} is not supported", mark=event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != f"{_TAG}str":
                raise _refusal("a key must be text; put it in quotes", mark=key.start_mark)
            if key.value in seen:
                raise _refusal(f"the key {key.value!r} is given twice", mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_core_int(self, node: yaml.ScalarNode) -> int:
        # Base 0 would refuse leading zeros, and YAML 1.1 reads them as octal.
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _refusal(problem: str, *, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _CoreDumper(yaml.SafeDumper):
    """Quotes what the core rules would read as something else, so that a dump always reads back."""

    yaml_implicit_resolvers = _CoreLoader.yaml_implicit_resolvers

    def ignore_aliases(self, _: Any) -> bool:
        return True

    def represent_core_float(self, value: float) -> yaml.ScalarNode:
        text = repr(value)  # the shortest text that reads back to the same bits
        return self.represent_scalar(f"{_TAG}float", text.replace("inf", ".inf").replace("nan", ".nan"))

    def represent_core_str(self, value: str) -> yaml.ScalarNode:
        # Between single quotes PyYAML folds the rarer line breaks into a plain newline or a space.
        return self.represent_scalar(f"{_TAG}str", value, style=None if value.isprintable() else '"')

    def represent_short_list(self, value: list[Any]) -> yaml.SequenceNode:
        flat = all(not isinstance(item, list | dict) for item in value)
        return self.represent_sequence(f"{_TAG}seq", value, flow_style=flat)


for _kind, _pattern, _first in _CORE_SCALARS:
    _CoreLoader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), list(_first))
_CoreLoader.add_constructor(f"{_TAG}int", _CoreLoader.construct_core_int)
_CoreDumper.add_representer(float, _CoreDumper.represent_core_float)
_CoreDumper.add_representer(str, _CoreDumper.represent_core_str)
_CoreDumper.add_representer(list, _CoreDumper.represent_short_list)
