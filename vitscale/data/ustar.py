"""The bytes of ustar archives: how a member is written, and how the members of one sample are found again without a copy."""

import re

BLOCK_BYTES = 512
END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)
REGULAR_TYPES = b"0\0"

_LONGEST_NAME = 100
_MODE_AND_OWNER = b"0000644\0" + b"0000000\0" + b"0000000\0"
_MTIME = b"00000000000\0"
_REST = (b"0" + bytes(100) + b"ustar\x0000").ljust(BLOCK_BYTES - 156, b"\0")  # type, link name, magic, version
_CHECKSUM_OF_THE_REST = sum(_REST) + 8 * ord(" ")  # the checksum field itself counts as spaces
_LARGEST_MEMBER = 8**11 - 1
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class MalformedTarError(ValueError):
    """Bytes that are not the headers and payloads of one sample."""


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


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) by WebDataset's rule: the extension starts at the first dot of the last path part.

    `"a/b.seg.png"` is member `"seg.png"` of sample `"a/b"`. The extension is lower-cased, and empty where there is none.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def parse_sample(data: memoryview) -> tuple[str, dict[str, memoryview]]:
    """(key, payload by extension) of the one sample that `data` spans, from its first header to its last padding.

    The hot path: payloads are slices of `data`, and header checksums are left to the caller's crc32 over the whole.
    Extension headers and folders between the members are passed over, as `build_index` has found them harmless.
    Raises `MalformedTarError`, also for archives made to mislead: no slice leaves `data`.
    """
    key = None
    members: dict[str, memoryview] = {}
    position, end = 0, len(data)
    try:
        while position < end:
            header = bytes(data[position : position + BLOCK_BYTES])
            size = int(header[124:136].strip(b" \0"), 8)
            start = position + BLOCK_BYTES
            position = start + padded_bytes(size)
            if size < 0 or position > end:
                raise MalformedTarError(f"a member of {size} bytes at {start} leaves the sample's {end} bytes")
            if header[156] not in REGULAR_TYPES:
                continue
            member_key, extension = split_name(header_name(header))
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
    """The member's name with its ustar prefix. Raises `UnicodeDecodeError` for a name that is not ASCII."""
    name = header[:100].partition(b"\0")[0].decode("ascii")
    # GNU archives ("ustar  ") keep other things where POSIX has the prefix.
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].partition(b"\0")[0].decode("ascii") + "/" + name
    return name
