"""The source `arrow`: a data set of Hugging Face's `datasets` as `save_to_disk` writes it, read with pyarrow alone."""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from vitscale.config import DataError

from ..images import EXTENSIONS
from ..labels import NO_CLASS, NamedLabels, listed_labels, single_labels
from ..options import SourceOptions, load_pyarrow
from ..split import IntArray, Labels, Record, Split, UnusableImageError, member_tar_bytes, multi_labels
from .files import suffix

ACCEPTED_OPTIONS = frozenset({"image_column", "label_column", "labels_column", "caption_column"})

_REMEDY = "Give the folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."
_OPEN_TABLES = 8


@dataclass(frozen=True, kw_only=True)
class ArrowImages:
    """Images of one column, `{bytes, path}` in each row of Arrow stream files."""

    paths: tuple[str, ...]
    column: str
    file_numbers: IntArray
    rows: IntArray
    """Inside the file."""
    numbers: IntArray
    """Inside the split."""
    sizes: IntArray
    file_identity: bytes

    def tar_bytes(self) -> IntArray:
        return member_tar_bytes(self.sizes)

    def origin(self, index: int) -> str:
        return f"row {self.numbers[index]}"

    def read(self, index: int) -> Record:
        table = _open_stream(self.paths[int(self.file_numbers[index])])
        image = table.column(self.column)[int(self.rows[index])].as_py()
        if image is None or (image["bytes"] is None and not image["path"]):
            raise UnusableImageError("the row has no image")
        name = image["path"] or ""
        if image["bytes"] is not None:
            return Record(image=image["bytes"], extension=EXTENSIONS.get(suffix(name)))
        try:
            return Record(image=Path(name).read_bytes(), extension=EXTENSIONS.get(suffix(name)))
        except (OSError, ValueError) as error:
            raise UnusableImageError(f"{name}: {error.strerror if isinstance(error, OSError) else error}") from None

    def take(self, indices: IntArray) -> Self:
        return replace(
            self,
            file_numbers=self.file_numbers[indices],
            rows=self.rows[indices],
            numbers=self.numbers[indices],
            sizes=self.sizes[indices],
        )

    def identity(self) -> bytes:
        return self.file_identity


def open_arrow(folder: Path, options: SourceOptions) -> list[Split]:
    """The splits of a `DatasetDict`, or the one data set. Raises `DataError` for another layout or a column that does not fit."""
    load_pyarrow(needed_for=str(folder))
    names = _json(folder / "dataset_dict.json").get("splits") if (folder / "dataset_dict.json").is_file() else None
    if names is None:
        return [_open_split(folder, name=None, options=options)]
    return [_open_split(folder / name, name=str(name), options=options) for name in names]


def _open_split(folder: Path, *, name: str | None, options: SourceOptions) -> Split:
    state, features = _json(folder / "state.json"), _json(folder / "dataset_info.json").get("features") or {}
    if state.get("_indices_data_files"):
        raise DataError(f"{folder}: selects rows through an index file, as old versions of datasets did. Save it anew with a later one.")
    paths = tuple(os.path.abspath(folder / file["filename"]) for file in state.get("_data_files") or [])
    tables = [_open_stream(path) for path in paths]
    lengths = [table.num_rows for table in tables]
    if not sum(lengths):
        raise DataError(f"{folder}: a data set without rows. Leave it out.")
    column = _image_column(features, options=options, folder=folder)
    numbers = np.arange(sum(lengths), dtype=np.int64)
    images = ArrowImages(
        paths=paths,
        column=column,
        file_numbers=np.repeat(np.arange(len(paths), dtype=np.int64), lengths),
        rows=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
        numbers=numbers,
        sizes=np.concatenate([_image_bytes(table, column=column) for table in tables]),
        file_identity=_identity(paths, column=column),
    )
    named = _labels(tables, features=features, options=options, folder=folder)
    caption = options.caption_column
    return Split(
        name=name,
        images=images,
        numbers=numbers,
        labels=None if named is None else named.labels,
        classes=None if named is None else named.classes,
        has_class_names=named is None or named.has_names,
        captions=None if caption is None else tuple(_values(tables, column=caption, features=features, folder=folder)),
        key_prefix=f"{name}-" if name else "",
        description={"kind": "arrow"},
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. {_REMEDY}") from None
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON ({error}). {_REMEDY}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: not what `datasets` writes. {_REMEDY}")
    return values


@functools.lru_cache(maxsize=_OPEN_TABLES)
def _open_stream(path: str) -> Any:
    """The table of one file, mapped into memory: only what is used is read."""
    pyarrow = load_pyarrow(needed_for=path)
    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(path)).read_all()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not readable as an Arrow stream ({' '.join(str(error).split())}). {_REMEDY}") from None


def _image_column(features: dict[str, Any], *, options: SourceOptions, folder: Path) -> str:
    present = [name for name, feature in features.items() if _type(feature) == "Image"]
    if options.image_column is not None and options.image_column not in present:
        raise DataError(f"{folder}: --image-column {options.image_column}: its image columns are {', '.join(present) or 'none'}.")
    if options.image_column is None and len(present) != 1:
        raise DataError(f"{folder}: has {len(present)} image columns ({', '.join(present) or 'none'}). Name one with --image-column.")
    return options.image_column or present[0]


def _image_bytes(table: Any, *, column: str) -> IntArray:
    """Size of each image, 0 for one that lies in a file of its own."""
    from pyarrow import compute

    lengths = compute.binary_length(compute.struct_field(table.column(column), "bytes"))
    return np.asarray(compute.fill_null(lengths, 0).to_numpy(), np.int64)


def _labels(tables: Sequence[Any], *, features: dict[str, Any], options: SourceOptions, folder: Path) -> NamedLabels | None:
    """By the options; else of the only column of classes, or of lists of classes, if there is one."""
    single, listed = options.label_column, options.labels_column
    if single is not None and listed is not None:
        raise DataError(f"{folder}: --label-column is for one class per image, --labels-column for any number. Give one of them.")
    if single is None and listed is None:
        found = [name for name, feature in features.items() if _class_names(feature) is not None]
        if len(found) > 1:
            raise DataError(f"{folder}: has several columns of classes ({', '.join(found)}). Name one: --label-column or --labels-column.")
        if not found:
            return None
        is_list = _type(features[found[0]]) != "ClassLabel"
        single, listed = (None, found[0]) if is_list else (found[0], None)
    column = single or listed or ""
    values = _values(tables, column=column, features=features, folder=folder)
    where = f"{folder}: column {column!r}"
    names = _class_names(features[column])
    if single is not None:
        return single_labels(values, where=where) if names is None else _known_classes(values, names=names, where=where)
    lists = [list(value or ()) for value in values]
    if names is None:
        return listed_labels(lists, where=where)
    return NamedLabels(labels=multi_labels([sorted(set(numbers)) for numbers in lists]), classes=names, has_names=True)


def _known_classes(values: Sequence[int | None], *, names: tuple[str, ...], where: str) -> NamedLabels:
    """`datasets` writes -1, or nothing, where a class is not known, as in the test sets of challenges."""
    numbers = np.array([NO_CLASS if value is None else value for value in values], np.int64)
    if numbers.min() < NO_CLASS or numbers.max() >= len(names):
        raise DataError(f"{where}: holds a class index outside of its {len(names)} names. {_REMEDY}")
    return NamedLabels(labels=Labels(values=numbers), classes=names, has_names=True)


def _values(tables: Sequence[Any], *, column: str, features: dict[str, Any], folder: Path) -> list[Any]:
    if column not in features:
        raise DataError(f"{folder}: has no column {column!r}; its columns are {', '.join(features)}. Name another column.")
    return [value for table in tables for value in table.column(column).to_pylist()]


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of a column of classes or of lists of classes."""
    if isinstance(feature, list):  # how versions before 4 wrote a list
        return _class_names(feature[0])
    if _type(feature) in ("List", "LargeList", "Sequence"):
        return _class_names(feature.get("feature"))
    return tuple(feature["names"]) if _type(feature) == "ClassLabel" else None


def _type(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def _identity(paths: Sequence[str], *, column: str) -> bytes:
    states = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    return hashlib.sha256(repr((states, column)).encode()).digest()
