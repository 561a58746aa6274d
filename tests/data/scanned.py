"""A tar as one pass over it finds it, for tests that compare that with what was written."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitscale.data.index import INDEX_DTYPE, IndexTable, scan_samples


@dataclass(frozen=True, kw_only=True)
class ScannedTar:
    """The index of a tar, and what the manifest says of it."""

    table: IndexTable
    keys: tuple[str, ...]
    members: frozenset[str]


def scan_tar(path: Path) -> ScannedTar:
    """Raises `DataError`, see `scan_samples`."""
    with open(path, "rb") as file:
        samples = list(scan_samples(file, path=str(path)))
    return ScannedTar(
        table=np.array([sample.row for sample in samples], dtype=INDEX_DTYPE),
        keys=tuple(sample.key for sample in samples),
        members=frozenset(extension for sample in samples for extension in sample.extensions),
    )
