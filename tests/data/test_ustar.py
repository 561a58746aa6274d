"""Our archives read by Python's tarfile, names split as WebDataset splits them, and no slice outside a hostile sample."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from vitscale.data.ustar import (
    BLOCK_BYTES,
    END_OF_ARCHIVE,
    MalformedTarError,
    is_safe_name,
    member_bytes,
    name_problem,
    padded_bytes,
    parse_sample,
    split_name,
)

PART = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,12}", fullmatch=True)
NAMES = st.lists(PART, min_size=1, max_size=4).map("/".join)
EXTENSIONS = st.from_regex(r"[a-z0-9]{1,6}(\.[a-z0-9]{1,4})?", fullmatch=True)


@given(name=NAMES, payload=st.binary(max_size=1500))
def test_tarfile_reads_what_we_write(name: str, payload: bytes) -> None:
    raw = member_bytes(name, payload=payload) + END_OF_ARCHIVE
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
        (member,) = archive.getmembers()
        assert (member.name, member.mtime, member.uid, member.gid, member.mode) == (name, 0, 0, 0, 0o644)
        assert member.isreg()
        assert archive.extractfile(member).read() == payload  # type: ignore[union-attr]


@given(
    members=st.dictionaries(EXTENSIONS, st.binary(max_size=1100), min_size=1, max_size=4), writer=st.sampled_from(["ours", "ustar", "gnu"])
)
def test_a_sample_is_parsed_back(members: dict[str, bytes], writer: str) -> None:
    raw = b"".join(_write(f"dir/k1.{extension}", payload, writer=writer) for extension, payload in members.items())
    key, parsed = parse_sample(memoryview(raw))
    assert key == "dir/k1"
    assert {extension: bytes(view) for extension, view in parsed.items()} == members


def test_payloads_are_slices_not_copies() -> None:
    raw = bytearray(member_bytes("k.bin", payload=b"aaaa"))
    _, members = parse_sample(memoryview(raw))
    raw[BLOCK_BYTES : BLOCK_BYTES + 4] = b"bbbb"
    assert bytes(members["bin"]) == b"bbbb"


@given(name=NAMES)
def test_names_are_split_as_webdataset_splits_them(name: str) -> None:
    key, extension = base_plus_ext(name)
    if key is None:
        assert split_name(name)[1] == ""
    else:
        assert split_name(name) == (key, extension.lower())


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a/../b.png", ".hidden.png", "a//b.png", "a b.png", "ä.png", "", "a/"])
def test_unsafe_names(name: str) -> None:
    assert not is_safe_name(name)


@pytest.mark.parametrize("name", ["._a.png", "d/.hidden.png", "README", "d.e/README", "."])
def test_members_of_no_sample(name: str) -> None:
    assert split_name(name)[1] == ""


@pytest.mark.parametrize("name", ["a b.png", "ä/日本.png", "d//a.png", ".hidden/a.png", "a..b.png", "k" * 4096])
def test_foreign_names_that_are_accepted(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "of 0 characters"),
        ("k" * 4097, "of 4097 characters"),
        ("/a", "absolute"),
        ("a\\b", "backslashes"),
        ("..", "climbs out"),
        ("../a", "climbs out"),
        ("a/../b", "climbs out"),
        ("a/..", "climbs out"),
        ("a\nb", "control characters"),
        ("a\x85b", "control characters"),
        ("a\u2029b", "control characters"),
        ("a\udc80b", "control characters"),
    ],
)
def test_foreign_names_that_are_refused(name: str, problem: str) -> None:
    assert problem in str(name_problem(name))


@given(
    key=st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="./"), min_size=1, max_size=180),
    members=st.dictionaries(EXTENSIONS, st.binary(max_size=1100), min_size=1, max_size=3),
    writer=st.sampled_from(["gnu", "pax"]),
)
def test_a_foreign_sample_is_parsed_back(key: str, members: dict[str, bytes], writer: str) -> None:
    raw = b"".join(_write(f"{key}.{extension}", payload, writer=writer) for extension, payload in members.items())
    parsed_key, parsed = parse_sample(memoryview(raw))
    assert parsed_key == key
    assert {extension: bytes(view) for extension, view in parsed.items()} == members


@given(raw=st.binary(max_size=600), position=st.integers(0, 2600))
def test_hostile_extension_headers_never_give_a_slice_outside(raw: bytes, position: int) -> None:
    sample = bytearray(_write("k" * 150 + ".png", b"x" * 700, writer="pax"))
    sample[position : position + len(raw)] = raw
    try:
        _, members = parse_sample(memoryview(sample))
    except MalformedTarError:
        return
    assert all(len(view) <= len(sample) - BLOCK_BYTES for view in members.values())


def test_a_prefix_is_part_of_the_name_in_ustar_only() -> None:
    long_name = "folder-" + "x" * 80 + "/" + "key" * 20 + ".png"
    raw = _write(long_name, b"1", writer="ustar")
    assert parse_sample(memoryview(raw))[0] == long_name.removesuffix(".png")


@given(position=st.integers(0, BLOCK_BYTES - 1), value=st.integers(0, 255))
def test_a_changed_header_byte_never_gives_a_slice_outside(position: int, value: int) -> None:
    raw = bytearray(member_bytes("k.png", payload=b"x" * 700) + member_bytes("k.cls", payload=b"3"))
    raw[position] = value
    try:
        _, members = parse_sample(memoryview(raw))
    except MalformedTarError:
        return
    assert all(len(view) <= len(raw) - BLOCK_BYTES for view in members.values())


@pytest.mark.parametrize(
    ("size_field", "message"),
    [
        (b"77777777777\0", "leaves the sample"),
        (b"-0000001000\0", "leaves the sample"),
        (b"99999999999\0", "not a tar header"),
        (b"\x80" + bytes(11), "not a tar header"),
    ],
)
def test_hostile_sizes(size_field: bytes, message: str) -> None:
    raw = bytearray(member_bytes("k.png", payload=b"x" * 700))
    raw[124:136] = size_field
    with pytest.raises(MalformedTarError, match=message):
        parse_sample(memoryview(raw))


def test_members_of_two_samples_are_refused() -> None:
    raw = member_bytes("a.png", payload=b"1") + member_bytes("b.cls", payload=b"2")
    with pytest.raises(MalformedTarError, match="two samples"):
        parse_sample(memoryview(raw))


@pytest.mark.parametrize("raw", [b"", b"x" * 100, bytes(512)])
def test_what_is_no_sample(raw: bytes) -> None:
    with pytest.raises(MalformedTarError):
        parse_sample(memoryview(raw))


@given(size=st.integers(0, 5000))
def test_padding_fills_blocks(size: int) -> None:
    padded = padded_bytes(size)
    assert size <= padded < size + BLOCK_BYTES
    assert padded % BLOCK_BYTES == 0


def _write(name: str, payload: bytes, *, writer: str) -> bytes:
    if writer == "ours":
        return member_bytes(name, payload=payload)
    stream = io.BytesIO()
    dialect = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}[writer]
    with tarfile.open(fileobj=stream, mode="w", format=dialect) as archive:
        info = tarfile.TarInfo(name)
        info.size = len(payload)
        archive.addfile(info, io.BytesIO(payload))
        end = archive.offset
    return stream.getvalue()[:end]
