"""Files of cached blocks: every range comes back, and every flip, cut or mix-up is noticed."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.data.storage.block_file import PART_BYTES, encode_block, read_block

KEY = bytes(range(32))


def _read(path: Path, *, length: int, first: int, stop: int, key: bytes = KEY) -> memoryview | None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_block(descriptor, key=key, length=length, first=first, stop=stop)
    finally:
        os.close(descriptor)


@given(length=st.integers(1, 3 * PART_BYTES + 7), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_range_comes_back(tmp_path_factory: pytest.TempPathFactory, length: int, data: st.DataObject) -> None:
    payload = os.urandom(length)
    path = tmp_path_factory.getbasetemp() / "block"
    path.write_bytes(encode_block(payload, key=KEY))
    first = data.draw(st.integers(0, length - 1))
    stop = data.draw(st.integers(first + 1, length))
    assert _read(path, length=length, first=first, stop=stop) == payload[first:stop]


@pytest.fixture
def block(tmp_path: Path) -> tuple[Path, bytes]:
    payload = os.urandom(PART_BYTES + 100)
    path = tmp_path / "block"
    path.write_bytes(encode_block(payload, key=KEY))
    return path, payload


def test_every_flipped_bit_is_noticed(block: tuple[Path, bytes]) -> None:
    path, payload = block
    raw = bytearray(path.read_bytes())
    head = len(raw) - len(payload)
    for position in [*range(head), *range(head, len(raw), 997), len(raw) - 1]:
        raw[position] ^= 1 << position % 8
        path.write_bytes(raw)
        assert _read(path, length=len(payload), first=0, stop=len(payload)) is None, position
        raw[position] ^= 1 << position % 8
    path.write_bytes(raw)
    assert _read(path, length=len(payload), first=0, stop=len(payload)) == payload


def test_every_cut_is_noticed(block: tuple[Path, bytes]) -> None:
    path, payload = block
    raw = path.read_bytes()
    for length in [*range(80), *range(80, len(raw), 1009), len(raw) - 1]:
        path.write_bytes(raw[:length])
        assert _read(path, length=len(payload), first=0, stop=len(payload)) is None, length


@pytest.mark.parametrize(("key", "longer"), [(bytes(32), 0), (KEY, -1), (KEY, 1)])
def test_another_block_is_not_taken_for_this_one(block: tuple[Path, bytes], key: bytes, longer: int) -> None:
    path, payload = block
    assert _read(path, length=len(payload) + longer, first=0, stop=10, key=key) is None


def test_a_range_is_not_charged_with_damage_elsewhere(block: tuple[Path, bytes]) -> None:
    path, payload = block
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert _read(path, length=len(payload), first=0, stop=PART_BYTES) == payload[:PART_BYTES]
    assert _read(path, length=len(payload), first=0, stop=PART_BYTES + 1) is None
