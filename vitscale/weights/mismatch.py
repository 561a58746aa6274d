"""Refusing a file whose tensors are not those of the model: what is missing, extra or of another shape, grouped and with near names."""

import difflib
from collections.abc import Callable, Iterable, Mapping

from vitscale.config import CheckpointError
from vitscale.weights.forms import Shape
from vitscale.weights.names import split_block

_SHOWN = 6


def refuse_mismatch(*, expected: Mapping[str, Shape], found: Mapping[str, Shape], where: str, hint: str) -> None:
    """Raise `CheckpointError` unless both have the same names and shapes. `hint` is said where they do not."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    other = [name for name in expected if name in found and expected[name] != found[name]]
    if not (missing or extra or other):
        return
    lines = [f"{where}: its tensors are not those of the model that it seems to hold{hint}:"]
    lines += _listed("missing", missing, tail=lambda name: _near(name, extra))
    lines += _listed("unknown", extra, tail=lambda name: f": {_shown(found[name])}")
    lines += _listed("of another shape", other, tail=lambda name: f": {_shown(found[name])}, expected {_shown(expected[name])}")
    lines.append("Give what the file does not tell as model.KEY=VALUE, and leave out what is no part of the model with --drop 'PATTERN'.")
    raise CheckpointError("\n".join(lines))


def _listed(title: str, names: list[str], *, tail: Callable[[str], str]) -> list[str]:
    groups = _grouped(names)
    lines = [f"  {title}: {pattern}{count}{tail(first)}" for pattern, (first, count) in list(groups.items())[:_SHOWN]]
    return [*lines, *([f"  {title}: {len(groups) - _SHOWN} more"] if len(groups) > _SHOWN else [])]


def _grouped(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Names that differ in the block's number only, as one pattern with the first of them and how many there are."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(split_block(name)[0], []).append(name)
    return {
        group[0] if len(group) == 1 else pattern: (group[0], "" if len(group) == 1 else f" ({len(group)} blocks)")
        for pattern, group in groups.items()
    }


def _near(name: str, others: list[str]) -> str:
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.7)
    return f"; the nearest name is {near[0]}" if near else ""


def _shown(shape: Shape) -> str:
    return " x ".join(map(str, shape)) if shape else "a single value"
