"""The bytes of ustar archives: how a member is written, and how the members of one sample are found again without a copy."""

import re
import unicodedata

from vitscale.data.tar_dialects import NOTHING, REGULAR_TYPES
from vitscale.data.tar_dialects import MalformedTarError as MalformedTarError

BLOCK_BYTES = 512
END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)

_LONGEST_NAME = 100
_MODE_AND_OWNER = b"0000644\0" + b"0000000\0" + b"0000000\0"
_MTIME = b"00000000000\0"
_REST = (b"0" + bytes(100) + b"ustar\x0000").ljust(BLOCK_BYTES - 156, b"\0")  # type, link name, magic, version
_CHECKSUM_OF_THE_REST = sum(_REST) + 8 * ord(" ")  # the checksum field itself counts as spaces
_LARGEST_MEMBER = 8**11 - 1
_LONGEST_FOREIGN_NAME = 4096
_UNSHOWABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})  # Unicode's control characters, surrogates, line and paragraph separators
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


def padded_bytes(size: int) -> int:
    """The space that a payload of `size` bytes takes in the archive."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def member_bytes(name: str, *, payload: bytes) -> bytes:
    """Header, payload and padding of one regular file, a function of name and payload only (no time, no owner)."""
    assert is_safe_name(name), name
    assert len(name) <= _LONGEST_NAME, name
    assert len(payload) <= _LARGEST_MEMBER, len(payload)
    before = name.encode("ascii").ljust(100, b"\0") + _MODE_AND_OWNER + b"%011o\0" % len(payload) + _MTIME
    checksum = sum(before) + _CHECKSUM_OF_THE_REST
    header = before + b"%06o\0 " % checksum + _REST
    return b"".join((header, payload, bytes(-len(payload) % BLOCK_BYTES)))


def is_safe_name(name: str) -> bool:
    """Whether a member's name is plain: letters, digits, `._-`, relative, and no part that starts with a dot."""
    return _SAFE_NAME.fullmatch(name) is not None


def name_problem(name: str) -> str | None:
    """Why a foreign member's name is refused, None for one that is not.

    Names are labels here and never opened as paths. Those that only make sense as an attack on programs that do, or that
    would garble a terminal or a list of keys, are refused all the same.
    """
    if not name or len(name) > _LONGEST_FOREIGN_NAME:
        return f"a name of {len(name)} characters"
    if name.startswith("/") or "\\" in name:
        return "an absolute name or one with backslashes"
    if ".." in name.split("/"):
        return "a name that climbs out of its folder"
    if not (name.isascii() and name.isprintable()) and any(unicodedata.category(letter) in _UNSHOWABLE for letter in name):
        return "a name with control characters"
    return None


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) by WebDataset's rule: the extension starts at the first dot of the last path part.

    `"a/b.seg.png"` is member `"seg.png"` of sample `"a/b"`. The extension is lower-cased. It is empty for a member that
    belongs to no sample, because it has none or because its last part starts with a dot, as a Mac's `._a.png` does.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower() if stem else ""


def parse_sample(data: memoryview) -> tuple[str, dict[str, memoryview]]:
    """(key, payload by extension) of the one sample that `data` spans, from its first header to its last padding.

    The hot path: payloads are slices of `data`, and header checksums are left to the caller's crc32 over the whole.
    GNU long names and pax headers are obeyed; folders and members that belong to no sample are passed over.
    Raises `MalformedTarError`, also for archives made to mislead: no slice leaves `data`.
    """
    key = None
    members: dict[str, memoryview] = {}
    announced = NOTHING
    position, end = 0, len(data)
    try:
        while position < end:
            header = bytes(data[position : position + BLOCK_BYTES])
            kind = header[156]
            if announced is NOTHING or announced.size is None or kind not in REGULAR_TYPES:
                size = int(header[124:136].strip(b" \0"), 8)
            else:
                size = announced.size
            start = position + BLOCK_BYTES
            position = start - (-size // BLOCK_BYTES) * BLOCK_BYTES  # a call of padded_bytes would show
            if size < 0 or position > end:
                raise MalformedTarError(f"a member of {size} bytes at {start} leaves the sample's {end} bytes")
            if kind not in REGULAR_TYPES:
                announced = announced.after(kind, bytes(data[start : start + size]))
                continue
            # A long name stands here cut short, perhaps inside a letter: it is not decoded.
            name = header_name(header) if announced is NOTHING or announced.name is None else announced.name
            announced = NOTHING
            member_key, extension = split_name(name)
            if not extension:
                continue
            if key is not None and member_key != key:
                raise MalformedTarError(f"members of two samples, {key} and {member_key}")
            key = member_key
            members[extension] = data[start : start + size]
    except MalformedTarError:
        raise
    except (ValueError, IndexError) as error:
        raise MalformedTarError(f"not a tar header: {error}") from None
    if key is None:
        raise MalformedTarError("no member")
    return key, members


def header_name(header: bytes) -> str:
    """The member's name with its ustar prefix. Raises `UnicodeDecodeError` for a name that is not UTF-8."""
    name = header[:100].partition(b"\0")[0].decode()
    # GNU archives ("ustar  ") keep other things where POSIX has the prefix.
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].partition(b"\0")[0].decode() + "/" + name
    return name
