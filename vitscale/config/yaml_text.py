"""YAML text to plain values by the YAML 1.2 core rules, the ones people expect: `1e-3` is a number and `no` is a word."""

import re
from pathlib import Path
from typing import Any

import yaml

from vitscale.config.errors import ConfigError


class _CoreLoader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 core scalars (1.1 reads `1e-3` as text, `no` as False, `12:30` as 750) and unique keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_FLOAT = r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for tag, pattern, first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), [*first] if first != "~nN\0" else ["~", "n", "N", ""])


def parse_yaml(text: str, *, source: str) -> Any:
    """Parse one YAML document. `source` names the text in the error. Raises `ConfigError` with line and column."""
    try:
        return yaml.load(text, Loader=_CoreLoader)
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


class _CoreDumper(yaml.SafeDumper):
    """Quotes what the core rules would read as something else, so that a dump always reads back."""

    yaml_implicit_resolvers = _CoreLoader.yaml_implicit_resolvers


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)  # repr is the shortest text that reads back to the same bits
    return dumper.represent_scalar("tag:yaml.org,2002:float", text.replace("inf", ".inf").replace("nan", ".nan"))


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.SequenceNode:
    flat = all(not isinstance(item, list | dict) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


_CoreDumper.add_representer(float, _represent_float)
_CoreDumper.add_representer(list, _represent_list)
