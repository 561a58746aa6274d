"""The source `table`: a CSV, TSV or Parquet file with a row per image: its path or url, and its class, classes or caption."""

import csv
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.config import DataError, UsageError

from ..labels import ClassValue, NamedLabels, listed_labels, single_labels
from ..options import SourceOptions, UrlRoot, load_pyarrow
from ..split import Split, some
from .files import find_files, suffix

ACCEPTED_OPTIONS = frozenset({"image_column", "label_column", "labels_column", "caption_column", "image_root", "url_roots"})

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LIST_SEPARATOR = ";"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

Column = Sequence[Any]


def open_table(path: Path, options: SourceOptions) -> list[Split]:
    """The one split of a table, in the order of its rows.

    Raises `DataError` for a table that cannot be read, a column that is missing and a url without a local copy's folder.
    """
    if options.image_column is None:
        raise UsageError("the source table needs --image-column: the name of the column with the images' paths or urls.")
    if options.label_column is not None and options.labels_column is not None:
        raise UsageError("--label-column is for one class per image, --labels-column for any number. Give one of them.")
    wanted = {options.image_column, options.label_column, options.labels_column, options.caption_column} - {None}
    table = _read_table(path, columns=[name for name in wanted if name is not None])
    origins = _origins(table[options.image_column], path=path, name=options.image_column)
    root = options.image_root or path.parent
    locations = _locations(origins, roots=options.url_roots, path=path)
    images = find_files(root, origins=origins, locations=locations)
    named = _labels(table, options=options, path=path)
    num_repeated = len(origins) - len(set(origins))
    return [
        Split(
            images=images,
            numbers=np.arange(len(origins), dtype=np.int64),
            labels=None if named is None else named.labels,
            classes=None if named is None else named.classes,
            has_class_names=named is None or named.has_names,
            captions=None if options.caption_column is None else _captions(table[options.caption_column]),
            description={"kind": "table", "sha256": _content_digest(path)},
            notes=(f"{num_repeated} rows name an image that an earlier row names too; all are packed",) if num_repeated else (),
        )
    ]


def _read_table(path: Path, *, columns: list[str]) -> Mapping[str, Column]:
    if suffix(str(path)) == ".parquet":
        return _read_parquet(path, columns=columns)
    if suffix(str(path)) not in _DELIMITERS:
        raise DataError(f"{path}: not a table by its name. Give a .csv, .tsv or .parquet file whose first row names the columns.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=_DELIMITERS[suffix(str(path))], strict=True)
            header = next(reader, [])
            _check_columns(columns, present=header, path=path)
            rows = [row for row in reader if row]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the path.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table of UTF-8 text ({error}). Write it anew, with quotes around fields that need them.") from None
    ragged = next((number for number, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if ragged is not None:
        raise DataError(f"{path}: row {ragged} has another number of fields than the first. Mend the row, or quote its fields.")
    return {name: [row[header.index(name)] for row in rows] for name in columns}


def _read_parquet(path: Path, *, columns: list[str]) -> Mapping[str, Column]:
    pyarrow = load_pyarrow(needed_for=str(path))
    from pyarrow import parquet

    try:
        _check_columns(columns, present=parquet.read_schema(path).names, path=path)
        table = parquet.read_table(path, columns=columns)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Check the path.") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not readable as Parquet ({' '.join(str(error).split())}). Write it anew.") from None
    return {name: table.column(name).to_pylist() for name in columns}


def _check_columns(columns: list[str], *, present: Sequence[str], path: Path) -> None:
    for name in columns:
        if list(present).count(name) != 1:
            problem = "no column" if name not in present else "more than one column"
            raise DataError(f"{path}: has {problem} {name!r}; its columns are {some(list(present), num_shown=20)}. Name another column.")


def _origins(column: Column, *, path: Path, name: str) -> tuple[str, ...]:
    wrong = next((row for row, value in enumerate(column, start=1) if not isinstance(value, str) or not value), None)
    if wrong is not None:
        raise DataError(f"{path}: row {wrong} has no path or url in the column {name!r}. Fill the row in, or remove it.")
    if not column:
        raise DataError(f"{path}: a table without rows. Give one with a row per image.")
    return tuple(column)


def _locations(origins: tuple[str, ...], *, roots: tuple[UrlRoot, ...], path: Path) -> tuple[str, ...] | None:
    """Where each image lies, relative to the root or absolute; None where all are plain paths."""
    urls = [origin for origin in origins if _URL.match(origin)]
    if not urls:
        return None
    absolute = [UrlRoot(prefix=known.prefix, folder=Path(os.path.abspath(known.folder))) for known in roots]
    found = {url: _local_copy(url, roots=absolute) for url in urls}
    lost = [url for url, location in found.items() if location is None]
    if lost:
        raise DataError(
            f"{path}: urls that no --url-root covers: {some(lost)}. Nothing is downloaded here: fetch the images first, and give"
            " --url-root PREFIX=FOLDER for the folder that holds them."
        )
    return tuple(found.get(origin) or origin for origin in origins)


def _local_copy(url: str, *, roots: list[UrlRoot]) -> str | None:
    """The file of a url below the folder of the longest prefix that fits; None where no prefix does, or it would lead out of the folder."""
    fitting = [root for root in roots if url.startswith(root.prefix)]
    if not fitting:
        return None
    best = max(fitting, key=lambda root: len(root.prefix))
    rest = url.removeprefix(best.prefix).lstrip("/")
    return None if ".." in rest.split("/") else str(best.folder / rest)


def _labels(table: Mapping[str, Column], *, options: SourceOptions, path: Path) -> NamedLabels | None:
    if options.label_column is not None:
        values = [_class_value(value) for value in table[options.label_column]]
        return single_labels(values, where=f"{path}: column {options.label_column!r}")
    if options.labels_column is not None:
        lists = [_class_list(value) for value in table[options.labels_column]]
        return listed_labels(lists, where=f"{path}: column {options.labels_column!r}")
    return None


def _class_value(value: Any) -> ClassValue:
    """A field of CSV is text, empty where there is nothing; Parquet has types."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and value.is_integer():  # what pandas makes of whole numbers where some are missing
        return int(value)
    return value.strip() if isinstance(value, str) else int(value) if isinstance(value, int) else str(value)


def _class_list(value: Any) -> list[str | int]:
    """A list in Parquet; in CSV, and in text columns of Parquet, names with semicolons between them."""
    parts = (value or "").split(_LIST_SEPARATOR) if value is None or isinstance(value, str) else value
    return [part for part in map(_class_value, parts) if part is not None]


def _captions(column: Column) -> tuple[str | None, ...]:
    return tuple(None if value is None else str(value) for value in column)


def _content_digest(path: Path) -> str:
    """Tells tables apart in the manifest, where no paths are written."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
