"""From what a source calls its classes, names or numbers, to class indices and the list of names."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vitscale.config import DataError

from .split import Labels, multi_labels

NO_CLASS = -1
"""The index of a sample whose source leaves its class open: left out or refused before it is packed."""

_MOST_CLASSES = 1 << 20
_NUMBER = re.compile(r"-?[0-9]+")

ClassValue = str | int | None


@dataclass(frozen=True, kw_only=True)
class NamedLabels:
    """Labels and what their indices mean; `has_names` is False where the names only repeat numbers."""

    labels: Labels
    classes: tuple[str, ...]
    has_names: bool


def single_labels(values: Sequence[ClassValue], *, where: str) -> NamedLabels:
    """One class per sample. All whole numbers: they are the indices; otherwise names, numbered in sorted order. None: no class.

    Raises `DataError`, with `where` in it, for numbers that cannot be indices.
    """
    classes, has_names = _classes((value for value in values if value is not None), where=where)
    index = _indices(classes, has_names=has_names)
    numbers = np.array([NO_CLASS if value is None else index[str(value)] for value in values], np.int64)
    return NamedLabels(labels=Labels(values=numbers), classes=classes, has_names=has_names)


def listed_labels(values: Sequence[Sequence[str | int]], *, where: str) -> NamedLabels:
    """Any number of classes per sample, each at most once and in ascending order."""
    classes, has_names = _classes((value for listed in values for value in listed), where=where)
    index = _indices(classes, has_names=has_names)
    lists = [sorted({index[str(value)] for value in listed}) for listed in values]
    return NamedLabels(labels=multi_labels(lists), classes=classes, has_names=has_names)


def _classes(values: Iterable[str | int], *, where: str) -> tuple[tuple[str, ...], bool]:
    names = {str(value) for value in values}
    if not names:
        raise DataError(f"{where}: not one sample has a class. Leave the column out to pack images without labels.")
    if not all(_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names)), True
    numbers = sorted(int(name) for name in names)
    if numbers[0] < 0 or numbers[-1] >= _MOST_CLASSES:
        wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
        raise DataError(f"{where}: {wrong} is no class index (0 to {_MOST_CLASSES - 1}). Number the classes from 0, or give their names.")
    return tuple(str(number) for number in range(numbers[-1] + 1)), False


def _indices(classes: tuple[str, ...], *, has_names: bool) -> "dict[str, int] | _Numbers":
    return {name: index for index, name in enumerate(classes)} if has_names else _Numbers()


class _Numbers:
    """Numbers are their own index, "007" too."""

    def __getitem__(self, text: str) -> int:
        return int(text)
