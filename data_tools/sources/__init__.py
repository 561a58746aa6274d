"""The table of sources that can be packed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..options import SourceOptions
from ..split import Split
from . import arrow, table
from .arrow import open_arrow
from .fashion_mnist import open_fashion_mnist
from .idx import open_idx
from .image_folder import open_image_folder
from .table import open_table
from .tars import open_tars


@dataclass(frozen=True, kw_only=True)
class Source:
    """How a source is opened, and which of `SourceOptions` it takes."""

    open: Callable[[Path, SourceOptions], Sequence[Split]]
    options: frozenset[str] = frozenset()


SOURCES: dict[str, Source] = {
    "fashion-mnist": Source(open=lambda path, _: open_fashion_mnist(path)),
    "image-folder": Source(open=lambda path, _: open_image_folder(path)),
    "idx": Source(open=lambda path, _: open_idx(path)),
    "table": Source(open=open_table, options=table.ACCEPTED_OPTIONS),
    "arrow": Source(open=open_arrow, options=arrow.ACCEPTED_OPTIONS),
    "tars": Source(open=lambda path, _: open_tars(path)),
}
"""Name of the source and how its input is opened."""
