"""What the sources can be told: which columns to use and where the images of paths and urls lie."""

from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

from vitscale.config import DataError, UsageError


@dataclass(frozen=True, kw_only=True)
class UrlRoot:
    """Urls that start with `prefix` lie in `folder`, under the rest of the url."""

    prefix: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options of sources; each source takes some of them and refuses the others."""

    image_column: str | None = None
    label_column: str | None = None
    labels_column: str | None = None
    caption_column: str | None = None
    image_root: Path | None = None
    url_roots: tuple[UrlRoot, ...] = ()

    def refuse_unless(self, accepted: frozenset[str], *, source: str) -> None:
        """Raise `UsageError` for an option that is set but has no meaning for the source."""
        for option in fields(self):
            if getattr(self, option.name) not in (None, ()) and option.name not in accepted:
                flag = "--url-root" if option.name == "url_roots" else f"--{option.name.replace('_', '-')}"
                raise UsageError(f"{flag} has no meaning for the source {source}. Leave it out.")


def parse_url_root(text: str) -> UrlRoot:
    """Read `PREFIX=FOLDER`. Raises `UsageError`."""
    prefix, equals, folder = text.rpartition("=")
    if not equals or "://" not in prefix or not folder:
        raise UsageError(f"--url-root {text}: expected PREFIX=FOLDER, for example https://example.org/photos/=/data/photos.")
    return UrlRoot(prefix=prefix, folder=Path(folder))


def load_pyarrow(*, needed_for: str) -> ModuleType:
    """The library that reads Parquet and Arrow files. Raises `DataError` where it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(f"{needed_for}: reading it needs pyarrow. Install it with `pip install 'vitscale[tables]'`.") from None
    return pyarrow  # type: ignore[no-any-return]
