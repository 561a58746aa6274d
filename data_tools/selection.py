"""Which samples of a source are packed, under which class index, and which of them validate: class map, removal list, validation split."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vitscale.config import DataError
from vitscale.dist.seeding import counter_key

from .labels import NO_CLASS
from .split import IntArray, Labels, Split, some

UnknownClasses = Literal["refuse", "skip"]


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """The classes of the packed data set, from a file."""

    path: Path
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Removals:
    """Samples that must not be packed, from a file: keys under which they would be packed, or origins in the source."""

    path: Path
    names: frozenset[str]


def read_class_map(path: Path) -> ClassMap:
    """Read one name a line, or JSON: a list of names or `{name: index}`. Raises `DataError` unless the indices are 0 to K - 1."""
    text = _text(path)
    names = _names_of_json(text, path=path) if path.suffix == ".json" else [line.strip() for line in text.rstrip().splitlines()]
    if not names:
        raise DataError(f"{path}: a class map without classes. Give one name a line, or JSON.")
    if not all(names):  # passed over, it would give all that follow another index
        raise DataError(f"{path}: has an empty line or name, which would be a class without a name. Name every class.")
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise DataError(f"{path}: names several classes alike: {some(repeated)}. Name each class once.")
    return ClassMap(path=path, names=tuple(names))


def read_removals(path: Path) -> Removals:
    """Read one sample a line; lines that start with `#` and empty ones do not count."""
    lines = (line.strip() for line in _text(path).splitlines())
    return Removals(path=path, names=frozenset(line for line in lines if line and not line.startswith("#")))


def map_classes(split: Split, *, class_map: ClassMap | None, unknown: UnknownClasses) -> Split:
    """The split with the map's classes: by name where the source has names, else the map names its numbers.

    Samples without a class that is known are refused by `DataError`, naming classes, or with `unknown="skip"` left out; a
    multi-label sample is then kept with the labels that are known.
    """
    if split.labels is None or split.classes is None:
        if class_map is not None:
            raise DataError(f"{class_map.path}: the source has no classes to map. Leave --classes out, or name its column of labels.")
        return split
    if class_map is not None:
        new_index = _new_indices(split.classes, has_names=split.has_class_names, names=class_map.names)
        if unknown == "refuse":
            _refuse_missing(split.classes, labels=split.labels, new_index=new_index, class_map=class_map)
        # The last one, at -1, stays what it is.
        labels = split.labels.mapped(np.append(new_index, NO_CLASS))
        split = replace(split, labels=labels, classes=class_map.names, has_class_names=True)
    return _without_open_classes(split, unknown=unknown)


def exclude(split: Split, *, removals: Removals) -> Split:
    """The split without the samples of a removal list, with a note about lines that name none of its samples."""
    is_kept = np.ones(split.num_samples, bool)
    used: set[str] = set()
    for index in range(split.num_samples):
        found = removals.names & {split.key(index), split.images.origin(index)}
        if found:
            is_kept[index] = False
            used |= found
    kept = split.take(np.flatnonzero(is_kept))
    num_unused = len(removals.names) - len(used)
    note = (f"{removals.path}: {num_unused} of {len(removals.names)} lines name no sample here",) if num_unused else ()
    num_excluded = split.num_samples - kept.num_samples
    return replace(kept, notes=(*split.notes, *note), description={**split.description, "excluded": num_excluded})


def divide(split: Split, *, val_fraction: float | None, val_per_class: int | None) -> list[Split]:
    """[train, val]: a sample validates by a hash of its origin alone, so that it stays on its side as the source grows.

    `val_fraction` is the share that validates; `val_per_class` is the number of samples of each class, those with the
    smallest hashes. Raises `DataError` where one side would be empty.
    """
    hashes = np.array([counter_key("val", split.images.origin(index)) for index in range(split.num_samples)], np.uint64)
    if val_per_class is not None:
        validates = _per_class(split, hashes=hashes, count=val_per_class)
        how: dict[str, str | int] = {"val_per_class": val_per_class}
    else:
        assert val_fraction is not None
        validates = hashes < np.uint64(int(val_fraction * 2.0**64))
        how = {"val_fraction": repr(val_fraction)}
    if validates.all() or not validates.any():
        side = "training" if validates.all() else "validation"
        raise DataError(
            f"the {side} split would be empty: of {split.num_samples} samples {int(validates.sum())} validate. Ask for another share."
        )
    described = replace(split, description={**split.description, **how})
    train = replace(described.take(np.flatnonzero(~validates)), name="train")
    return [train, replace(described.take(np.flatnonzero(validates)), name="val", notes=())]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the path.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}). Write it anew.") from None


def _names_of_json(text: str, *, path: Path) -> list[str]:
    try:
        values: Any = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON ({error}). Write a list of names, or an object of name: index.") from None
    if isinstance(values, dict) and all(type(index) is int for index in values.values()):
        names = sorted(values, key=lambda name: int(values[name]))
        if [values[name] for name in names] != list(range(len(names))):
            raise DataError(f"{path}: its indices are not 0 to {len(names) - 1}, each once. Number the classes without gaps.")
        return names
    if isinstance(values, list) and all(isinstance(name, str) for name in values):
        return values
    raise DataError(f"{path}: neither a list of names nor an object of name: index. Write one of them.")


def _refuse_missing(classes: tuple[str, ...], *, labels: Labels, new_index: IntArray, class_map: ClassMap) -> None:
    used = np.unique(labels.values[labels.values >= 0])
    missing = [classes[old] for old in used.tolist() if new_index[old] < 0]
    if missing:
        raise DataError(
            f"{class_map.path}: classes of the source that the map lacks: {some(missing)}. Add them, or leave their samples out with"
            " --skip-unknown."
        )


def _new_indices(classes: tuple[str, ...], *, has_names: bool, names: tuple[str, ...]) -> IntArray:
    if not has_names:
        numbers = np.arange(len(classes), dtype=np.int64)
        return np.where(numbers < len(names), numbers, NO_CLASS)
    index: Mapping[str, int] = {name: number for number, name in enumerate(names)}
    return np.array([index.get(name, NO_CLASS) for name in classes], np.int64)


def _without_open_classes(split: Split, *, unknown: UnknownClasses) -> Split:
    labels = split.labels
    if labels is None or labels.is_multi or not (labels.values < 0).any():
        return split
    open_indices = np.flatnonzero(labels.values < 0)
    if unknown == "refuse":
        named = [split.images.origin(index) for index in open_indices[:6].tolist()]
        raise DataError(
            f"{len(open_indices)} of {split.num_samples} samples have no class: {some(named)}. Give them one, leave them out with"
            " --skip-unknown, or pack without labels."
        )
    kept = split.take(np.flatnonzero(labels.values >= 0))
    return replace(kept, description={**split.description, "unknown_class": len(open_indices)})


def _per_class(split: Split, *, hashes: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.bool_]:
    if split.labels is None or split.labels.is_multi or split.classes is None:
        raise DataError("--val-per-class needs one class per sample. Use --val-fraction here.")
    labels = split.labels.values
    validates = np.zeros(split.num_samples, bool)
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        if len(members) <= count:
            name = split.classes[label]
            raise DataError(f"class {name!r} has {len(members)} samples: --val-per-class {count} leaves none to train on. Ask for fewer.")
        validates[members[np.argsort(hashes[members], kind="stable")[:count]]] = True
    return validates
