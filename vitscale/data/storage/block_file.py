"""The file of one cached block: its key, its length and a crc32 of every part, so that nothing wrong is ever read back.

Layout, little-endian: magic (8 bytes), key (32), payload length (8), crc32 of these and of the table (4); a table of one
crc32 per part of the payload (4 each); the payload. Parts are what a read verifies: a range costs the parts it touches.
"""

import os
import struct

import numpy as np
from isal import isal_zlib

PART_BYTES = 64 << 10
KEY_BYTES = 32

_MAGIC = b"vitsblk1"
_HEADER = struct.Struct(f"<8s{KEY_BYTES}sQ")
_CRC = struct.Struct("<I")


def encode_block(payload: bytes | memoryview, *, key: bytes) -> bytes:
    """The file's bytes."""
    assert len(key) == KEY_BYTES, len(key)
    view = memoryview(payload)
    table = np.array(
        [isal_zlib.crc32(view[start : start + PART_BYTES]) for start in range(0, len(view), PART_BYTES)], dtype="<u4"
    ).tobytes()
    header = _HEADER.pack(_MAGIC, key, len(view))
    return b"".join((header, _CRC.pack(isal_zlib.crc32(table, isal_zlib.crc32(header))), table, view))


def read_block(descriptor: int, *, key: bytes, length: int, first: int, stop: int) -> memoryview | None:
    """Bytes [first, stop) of the payload, which is `length` bytes long; None unless the file is whole where it is read."""
    assert 0 <= first < stop <= length, (first, stop, length)
    num_parts = -(-length // PART_BYTES)
    prefix_bytes = _HEADER.size + _CRC.size + num_parts * _CRC.size
    prefix = os.pread(descriptor, prefix_bytes, 0)
    header, table = prefix[: _HEADER.size], prefix[_HEADER.size + _CRC.size :]
    if len(prefix) < prefix_bytes or header != _HEADER.pack(_MAGIC, key, length):
        return None
    if _CRC.unpack_from(prefix, _HEADER.size)[0] != isal_zlib.crc32(table, isal_zlib.crc32(header)):
        return None
    crcs = np.frombuffer(table, dtype="<u4").tolist()
    first_part, stop_part = first // PART_BYTES, -(-stop // PART_BYTES)
    base = first_part * PART_BYTES
    end = min(stop_part * PART_BYTES, length)
    parts = os.pread(descriptor, end - base, prefix_bytes + base)
    if len(parts) < end - base:
        return None
    view = memoryview(parts)
    for part in range(first_part, stop_part):
        start = (part - first_part) * PART_BYTES
        if isal_zlib.crc32(view[start : start + PART_BYTES]) != crcs[part]:
            return None
    return view[first - base : stop - base]
