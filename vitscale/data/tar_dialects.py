"""What extension headers say about the tar member that follows them: GNU long names, and the path and size of pax."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

REGULAR_TYPES = b"0\0"
"""Type bytes of a regular file."""

_FOLDER, _PAX, _PAX_OF_ALL, _GNU_LONG_NAME = b"5xgL"
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe", b"S": "a sparse file"}
_UTF8 = "ISO-IR 10646 2000 UTF-8"
# A header without these says nothing that matters here: most hold a time with a fraction of a second.
_TELLING = (b"path=", b"size=", b"hdrcharset=", b"GNU.sparse")


class MalformedTarError(ValueError):
    """Bytes that are not the headers and payloads of one sample."""


@dataclass(frozen=True, kw_only=True)
class Announced:
    """What the extension headers since the last member say about the next one; None where its own header counts."""

    name: str | None = None
    size: int | None = None

    def after(self, kind: int, payload: bytes) -> "Announced":
        """The announcement after one more entry that is not a regular file, of the type byte `kind`.

        Folders end an announcement as any member does. Raises `MalformedTarError` for links, special and sparse files and
        for records that are damaged, in another encoding, or meant for every member of the archive.
        """
        if kind == _FOLDER:
            return NOTHING
        if kind == _GNU_LONG_NAME:
            return self._with_name(_decoded(payload.partition(b"\0")[0]))
        if kind not in (_PAX, _PAX_OF_ALL):
            raise MalformedTarError(f"{_KINDS.get(bytes([kind]), f'an entry of type {chr(kind)!r}')}, not a regular file")
        if not any(key in payload for key in _TELLING):
            return self
        announced = self
        for key, value in _pax_records(payload):
            announced = announced._with_record(key, value, is_of_all=kind == _PAX_OF_ALL)
        return announced

    def _with_record(self, key: str, value: bytes, *, is_of_all: bool) -> "Announced":
        if key.startswith("GNU.sparse"):
            raise MalformedTarError("a sparse file, not a regular one")
        if key == "hdrcharset" and value != _UTF8.encode():
            raise MalformedTarError("names in another encoding than UTF-8")
        if key in ("path", "size") and is_of_all:
            raise MalformedTarError(f"a pax header that gives every member the same {key}")
        if key == "path":
            return self._with_name(_decoded(value))
        if key == "size":
            if not value.isdigit():
                raise MalformedTarError("a pax header with a size that is no number")
            return replace(self, size=int(value))
        return self

    def _with_name(self, name: str) -> "Announced":
        if self.name is not None and self.name != name:
            raise MalformedTarError("extension headers that give one member two names")
        return replace(self, name=name)


NOTHING = Announced()


def _decoded(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedTarError(f"the name {name!r}, which is not UTF-8") from None


def _pax_records(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """The records `LENGTH KEY=VALUE\\n` that fill the payload; LENGTH counts the whole record."""
    position = 0
    while position < len(payload):
        digits = payload[position : position + 12].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = payload[position : position + length]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if not equals or not record.endswith(b"\n") or len(record) != length:
            raise MalformedTarError("a damaged pax header")
        yield _decoded(key), value[:-1]
        position += length
