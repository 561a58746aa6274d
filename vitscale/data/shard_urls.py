"""Addresses of unindexed shards: which are accepted, and what the short forms `{0000..0099}` and `*` stand for."""

import glob
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitscale.config import DataError
from vitscale.data.storage.store_address import SCHEMES

_MOST_SHARDS = 1_000_000
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_GLOB = re.compile(r"[*?\[]")
_USER = re.compile(r"//[^/]*@")


def url_problem(url: str) -> str | None:
    """Why an address is refused, None for one that is not. Looks at the text only."""
    scheme = _SCHEME.match(url)
    name = scheme[1].lower() if scheme else "file"
    shown = repr(url if name == "file" else _without_secrets(url))
    if name not in (*SCHEMES, "file"):
        reason = "would run a shell command" if name == "pipe" else "is none that is read here"
        return f"{shown}: the scheme {name!r} {reason}; give paths, or addresses of {', '.join(SCHEMES)}"
    if url in ("", "-") or "\0" in url:
        return f"{shown}: not the path of a shard"
    if name != "file" and re.search(r"[?#*\[]", url):
        return f"{shown}: a remote address may hold no query and no wildcard; name the shards, as in shard-{{0000..0099}}.tar"
    if name != "file" and _USER.search(url):
        return f"{shown}: a remote address may hold no user name and no password; credentials come from the environment"
    try:
        next(iter(_expand_braces(url)))
    except ValueError as error:
        return f"{shown}: {error}"
    return None


def expand_urls(urls: Sequence[str]) -> tuple[str, ...]:
    """The shards that accepted addresses name, in order: braces and local wildcards written out, `file:` taken off.

    Nothing else is replaced: no `$NAME`, no `~`. Raises `DataError` when a local shard is not there, a wildcard fits nothing,
    or a shard is named twice.
    """
    found: dict[str, str] = {}
    for url in urls:
        assert url_problem(url) is None, url
        for shard in itertools.chain.from_iterable(_expand_local(text) for text in _expand_braces(url)):
            if shard in found:
                also = "" if found[shard] == url else f", by {found[shard]!r} and {url!r}"
                raise DataError(f"data.urls: {shard} is named twice{also}. Name each shard once.")
            found[shard] = url
    if len(found) > _MOST_SHARDS:
        raise DataError(f"data.urls: {len(found)} shards, more than the {_MOST_SHARDS} that are accepted. Use larger shards.")
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Location:
    """A shard as a storage names it: the root of the storage and the file in it."""

    root: str
    name: str


def locate(shard: str) -> Location:
    """Where a shard that `expand_urls` gave lies."""
    root, slash, name = shard.rpartition("/")
    return Location(root=root or slash or ".", name=name)


def _without_secrets(url: str) -> str:
    """An address as it may be shown: a password stands before the host, a signature after ? or #."""
    return _USER.sub("//...@", re.split(r"[?#]", url, maxsplit=1)[0])


def _expand_braces(url: str) -> Iterator[str]:
    """Raises `ValueError` for braces that are neither a range nor a list."""
    parts = _BRACES.split(url)
    if any(letter in text for text in parts[::2] for letter in "{}"):
        raise ValueError("braces that do not match, or braces inside braces")
    choices = [[part] if place % 2 == 0 else _alternatives(part) for place, part in enumerate(parts)]
    total = 1
    for alternatives in choices:
        total *= len(alternatives)
    if total > _MOST_SHARDS:
        raise ValueError(f"stands for {total} shards, more than the {_MOST_SHARDS} that are accepted")
    return ("".join(chosen) for chosen in itertools.product(*choices))


def _alternatives(text: str) -> Sequence[str]:
    match = _RANGE.fullmatch(text)
    if match is None:
        if "," not in text:
            raise ValueError(f"{{{text}}} is neither a range, as {{0000..0099}}, nor a list, as {{train,extra}}")
        return text.split(",")
    first, last = int(match[1]), int(match[2])
    if last < first or last - first >= _MOST_SHARDS:
        raise ValueError(f"{{{text}}} is not a range that rises, of at most {_MOST_SHARDS} numbers")
    # As in a shell: padded to the same width where either end is.
    padded = any(len(end) > 1 and end.startswith("0") for end in match.groups())
    width = max(len(end) for end in match.groups()) if padded else 0
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def _expand_local(url: str) -> list[str]:
    scheme = _SCHEME.match(url)
    if scheme is not None and scheme[1].lower() != "file":
        return [url]
    path = re.sub(r"^file:(//)?", "", url, flags=re.IGNORECASE)
    if _GLOB.search(path) and not _is_file(path):
        found = sorted(glob.glob(path, recursive=True))
        if not found:
            raise DataError(f"data.urls: no file fits {path!r}. Check the path; it is relative to the folder the command is started in.")
        return found
    if not _is_file(path):
        raise DataError(f"data.urls: {path}: no such file. Check the path; it is relative to the folder the command is started in.")
    return [path]


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError as error:
        raise DataError(f"data.urls: {path}: cannot be read: {error.strerror}. Check the path and the rights on its folders.") from None
