"""Indexing tars of every writer we meet, the round trip of the index file, and what the indexer must refuse."""

import hashlib
import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from webdataset import TarWriter

from tests.data.scanned import scan_tar
from vitscale.config import DataError
from vitscale.data.index import INDEX_DTYPE, decode_index, encode_index, scan_samples
from vitscale.data.manifest import Shard
from vitscale.data.ustar import END_OF_ARCHIVE, member_bytes, parse_sample

TABLE = np.array([(0, 1024, 7), (1024, 2048, 8)], INDEX_DTYPE)


def shard_of(table: np.ndarray, *, num_bytes: int = 4096) -> Shard:
    digest = hashlib.sha256(encode_index(table)).hexdigest()
    return Shard(name="t.tar", bytes=num_bytes, num_samples=len(table), sha256="0" * 64, index_sha256=digest)


def test_index_file_round_trip_and_same_bytes() -> None:
    raw = encode_index(TABLE)
    assert np.array_equal(decode_index(raw, shard=shard_of(TABLE), path="i"), TABLE)
    assert raw == encode_index(TABLE.copy())
    assert np.array_equal(np.load(io.BytesIO(raw), allow_pickle=False), TABLE)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.array([(0, 1024, 7), (512, 1024, 8)], INDEX_DTYPE), "overlap"),
        (np.array([(0, 1024, 7), (2048, 4096, 8)], INDEX_DTYPE), "outside"),
        (np.array([(2**64 - 512, 1024, 7)], INDEX_DTYPE), "outside"),
        (np.array([(0, 2**64 - 1, 7)], INDEX_DTYPE), "outside"),
    ],
)
def test_an_index_that_points_astray_is_refused(table: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_index(encode_index(table), shard=shard_of(table), path="i")


def test_another_index_than_the_manifest_names_is_refused() -> None:
    with pytest.raises(DataError, match="i: changed since the data set was packed"):
        decode_index(encode_index(TABLE[:1]), shard=shard_of(TABLE), path="i")


@pytest.mark.parametrize("array", [np.arange(2), TABLE[:1], np.array([{}, {}], object)])
def test_an_array_of_another_kind_is_refused(array: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    raw = stream.getvalue()
    shard = shard_of(TABLE).model_copy(update={"index_sha256": hashlib.sha256(raw).hexdigest()})
    with pytest.raises(DataError, match=r"not a \.npy array|not the index of the 2 samples"):
        decode_index(raw, shard=shard, path="i")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(sizes=st.lists(st.lists(st.integers(0, 1600), min_size=1, max_size=3), min_size=1, max_size=5), writer=st.sampled_from(range(5)))
def test_every_sample_is_found_whoever_wrote_the_tar(tmp_path: Path, sizes: list[list[int]], writer: int) -> None:
    samples = {f"s{i}": {f"e{j}": bytes([i + j]) * size for j, size in enumerate(row)} for i, row in enumerate(sizes)}
    path = tmp_path / "t.tar"
    [_ours, _tarfile_ustar, _tarfile_gnu, _tarfile_pax, _webdataset][writer](path, samples)
    scanned = scan_tar(path)
    raw = path.read_bytes()
    found = {}
    for offset, length, crc in scanned.table.tolist():
        data = raw[offset : offset + length]
        assert zlib.crc32(data) == crc
        key, members = parse_sample(memoryview(data))
        found[key] = {extension: bytes(view) for extension, view in members.items()}
    assert found == samples
    assert scanned.keys == tuple(samples)
    assert scanned.members == {extension for members in samples.values() for extension in members}


def test_folders_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "in" / "cls_a").mkdir(parents=True)
    (tmp_path / "in" / "cls_a" / "x.png").write_bytes(b"1")
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.add(tmp_path / "in", arcname="./")
    assert scan_tar(tmp_path / "t.tar").keys == ("./cls_a/x",)


NAMES = ["a b.jpg", "ä/ö.jpg", "k" * 98 + ".jpg", "k" * 99 + ".png", "d" * 120 + "/" + "k" * 160 + ".jpg", "日本/写真 1.jpg", "./x (1).jpg"]


@pytest.mark.parametrize("dialect", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_foreign_names_are_those_that_webdataset_reads(tmp_path: Path, dialect: int) -> None:
    samples = {name.rpartition(".")[0]: {"jpg": name.encode(), "cls": b"1"} for name in NAMES}
    _tarfile(tmp_path / "t.tar", samples, dialect)
    theirs = {sample["__key__"]: sample["jpg"] for sample in webdataset.WebDataset([str(tmp_path / "t.tar")], shardshuffle=False)}
    ours = dict(_parsed(tmp_path / "t.tar"))
    assert {key: members["jpg"] for key, members in ours.items()} == theirs
    assert len(ours) == len(NAMES)


def test_a_size_may_stand_in_a_pax_header_only(tmp_path: Path) -> None:
    """As of members too large for the ustar field; a reader that takes the header's own size would lose its way."""
    payload = b"p" * 700
    extended = pax({"size": str(len(payload))})[:-1024]
    (tmp_path / "t.tar").write_bytes(extended + with_size(0) + payload + bytes(324) + member("big.cls", b"7") + END_OF_ARCHIVE)
    with tarfile.open(tmp_path / "t.tar") as archive:
        assert [info.size for info in archive] == [700, 1]
    assert _parsed(tmp_path / "t.tar") == [("big", {"png": payload, "cls": b"7"})]


def test_members_of_no_sample_are_passed_over_and_named(tmp_path: Path) -> None:
    parts = ["README", "a.jpg", "._a.jpg", "NOTES", "a.cls", "d/.DS_Store", "b.jpg", "LICENSE"]
    (tmp_path / "t.tar").write_bytes(b"".join(hidden(name) for name in parts) + END_OF_ARCHIVE)
    seen: list[str] = []
    with open(tmp_path / "t.tar", "rb") as file:
        samples = list(scan_samples(file, path="t", passed_over=seen.append))
    assert [(sample.key, sample.offset, len(sample.raw)) for sample in samples] == [("a", 1024, 4096), ("b", 6144, 1024)]
    assert seen == ["README", "._a.jpg", "NOTES", "d/.DS_Store", "LICENSE"]
    assert _parsed(tmp_path / "t.tar") == [("a", {"jpg": b"a.jpg", "cls": b"a.cls"}), ("b", {"jpg": b"b.jpg"})]


ENTRIES = st.sampled_from(
    [
        ("file", "a.png"),
        ("file", "a.cls"),
        ("file", "b.png"),
        ("file", "README"),
        ("file", "k" * 130 + ".png"),
        ("file", "ü" * 70 + ".cls"),
        ("folder", "a.png"),
        ("folder", "d" * 120),
        ("pax", {"path": "a.txt"}),
        ("pax", {"path": ""}),
        ("pax", {"size": "3"}),
        ("pax", {"size": "0"}),
        ("pax", {"mtime": "1.5"}),
        ("pax of all", {"comment": "x" * 600}),
        ("link", "a.png"),
    ]
)


@example(entries=[("pax", {"size": "3"}), ("file", "a.png")], dialect=tarfile.GNU_FORMAT, changes=[(1, 124, b"\x01")])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    entries=st.lists(ENTRIES, min_size=1, max_size=6),
    dialect=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    changes=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0, 100, 124, 130, 156, 157, 257, 345]), st.binary(min_size=1, max_size=12)),
        max_size=2,
    ),
)
def test_scanner_and_parser_agree_on_any_tar(
    entries: list[tuple[str, object]], dialect: int, changes: list[tuple[int, int, bytes]]
) -> None:
    """However extension headers, folders and files follow each other, and whatever a header says with a checksum that is right:
    the tar is refused in a sentence, or the reader finds in each span the sample that the scan found there."""
    raw = bytearray(b"".join(entry(kind, value, dialect=dialect) for kind, value in entries))
    for number, place, data in changes:
        start = number * 1024 % len(raw)
        raw[start + place : start + place + len(data)] = data
        header = raw[start : start + 512]
        raw[start + 148 : start + 156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 256)
    try:
        samples = list(scan_samples(io.BytesIO(bytes(raw) + END_OF_ARCHIVE), path="t"))
    except DataError:
        return
    for sample in samples:
        key, members = parse_sample(memoryview(sample.raw))
        assert (key, tuple(members)) == (sample.key, sample.extensions)
        assert bytes(raw[sample.offset : sample.offset + len(sample.raw)]) == sample.raw


def entry(kind: str, value: object, *, dialect: int) -> bytes:
    """An entry with the extension headers that tarfile writes for it; a file holds three bytes."""
    if isinstance(value, dict):
        return pax(value, kind=tarfile.XHDTYPE if kind == "pax" else tarfile.XGLTYPE)[:-1024]
    info = tarfile.TarInfo(str(value))
    info.type = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "link": tarfile.LNKTYPE}[kind]
    info.size = 3 if kind == "file" else 0
    return info.tobuf(dialect, "utf-8") + (b"xyz".ljust(512, b"\0") if kind == "file" else b"")


def test_two_names_for_one_member_are_refused(tmp_path: Path) -> None:
    gnu = tarfile.TarInfo("k" * 150 + ".png").tobuf(tarfile.GNU_FORMAT)[:1024]
    (tmp_path / "t.tar").write_bytes(gnu + pax({"path": "b.png"}) + END_OF_ARCHIVE)
    with pytest.raises(DataError, match="give one member two names"):
        scan_tar(tmp_path / "t.tar")


def hidden(name: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(name)
    return info.tobuf(tarfile.USTAR_FORMAT) + name.encode().ljust(512, b"\0")


def _parsed(path: Path) -> list[tuple[str, dict[str, bytes]]]:
    """Every sample as the reader parses it, in the tar's order."""
    raw = path.read_bytes()
    spans = [memoryview(raw)[offset : offset + length] for offset, length, _ in scan_tar(path).table.tolist()]
    parsed = [parse_sample(span) for span in spans]
    return [(key, {extension: bytes(view) for extension, view in members.items()}) for key, members in parsed]


def member(name: str, payload: bytes = b"x") -> bytes:
    return member_bytes(name, payload=payload)


def special(kind: bytes) -> bytes:
    info = tarfile.TarInfo("link.png")
    info.type, info.linkname = kind, "/etc/passwd"
    return info.tobuf(tarfile.USTAR_FORMAT)


def named(name: str, dialect: int) -> bytes:
    return tarfile.TarInfo(name).tobuf(dialect)


def pax(records: dict[str, str], *, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A member a.png behind a pax header of these records."""
    return bytes(tarfile.TarInfo._create_pax_generic_header(records, kind, "utf-8")) + member("a.png")  # type: ignore[attr-defined]


def with_size(size: int) -> bytes:
    info = tarfile.TarInfo("big.png")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "cut short at byte 0, no end-of-archive mark"),
        (END_OF_ARCHIVE, "without samples"),
        (member("a.png"), "no end-of-archive mark"),
        (member("a.png", b"x" * 900)[:1100], "cut short inside the member at byte 0"),
        (b"garbage!" * 128 + END_OF_ARCHIVE, "no valid tar header at byte 0"),
        (member("a.png") + b"\x01" + bytes(511), "no valid tar header at byte 1024"),
        (member("a.png") + END_OF_ARCHIVE + member("b.png") + END_OF_ARCHIVE, "data after the end-of-archive mark"),
        (member("a.png") + member("b.png") + member("a.cls") + END_OF_ARCHIVE, "members of sample a are not neighbours"),
        (member("a.png") + member("a.PNG") + END_OF_ARCHIVE, "sample a has two members .png"),
        (member("noextension") + END_OF_ARCHIVE, "without samples"),
        (special(tarfile.SYMTYPE) + END_OF_ARCHIVE, "a symbolic link, not a regular file"),
        (special(tarfile.LNKTYPE) + END_OF_ARCHIVE, "a hard link, not a regular file"),
        (special(tarfile.CHRTYPE) + END_OF_ARCHIVE, "a device, not a regular file"),
        (special(tarfile.FIFOTYPE) + END_OF_ARCHIVE, "a pipe, not a regular file"),
        (special(tarfile.GNUTYPE_SPARSE) + END_OF_ARCHIVE, "a sparse file, not a regular file"),
        (named("../../etc/x.png", tarfile.USTAR_FORMAT) + END_OF_ARCHIVE, "a name that climbs out"),
        (named("a/../b.png", tarfile.USTAR_FORMAT) + END_OF_ARCHIVE, "a name that climbs out"),
        (named("x" * 120 + "/../../b.png", tarfile.PAX_FORMAT) + END_OF_ARCHIVE, "a name that climbs out"),
        (named("x" * 120 + "/../../b.png", tarfile.GNU_FORMAT) + END_OF_ARCHIVE, "a name that climbs out"),
        (named("/etc/x.png", tarfile.USTAR_FORMAT) + END_OF_ARCHIVE, "an absolute name"),
        (named("./../x.png", tarfile.USTAR_FORMAT) + END_OF_ARCHIVE, "a name that climbs out"),
        (named("C:\\x.png", tarfile.USTAR_FORMAT) + END_OF_ARCHIVE, "with backslashes"),
        (named("a\x1b[31m.png", tarfile.USTAR_FORMAT) + END_OF_ARCHIVE, "a name with control characters"),
        (named("a\u2028b.png", tarfile.GNU_FORMAT) + END_OF_ARCHIVE, "a name with control characters"),
        (named("a\udcffb.png", tarfile.GNU_FORMAT) + END_OF_ARCHIVE, "is not UTF-8"),
        (named("k" * 5000 + ".png", tarfile.GNU_FORMAT) + END_OF_ARCHIVE, "a name of 5004 characters"),
        (pax({"path": "b.png", "GNU.sparse.major": "1"}) + END_OF_ARCHIVE, "a sparse file, not a regular one"),
        (pax({"size": "99999999999"}) + END_OF_ARCHIVE, "larger than 1073741824 bytes"),
        (pax({"size": "-512"}) + END_OF_ARCHIVE, "a size that is no number"),
        (pax({"hdrcharset": "BINARY"}) + END_OF_ARCHIVE, "another encoding than UTF-8"),
        (pax({"path": "b.png"}, kind=tarfile.XGLTYPE) + END_OF_ARCHIVE, "gives every member the same path"),
        (with_size(9 << 30) + END_OF_ARCHIVE, "larger than 1073741824 bytes"),
        (with_size(2 << 30) + END_OF_ARCHIVE, "larger than 1073741824 bytes"),
    ],
)
def test_what_is_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as error:
        scan_tar(path)
    assert str(error.value).startswith(f"{path}: ")


def test_every_flipped_bit_of_a_header_is_found_or_changes_the_index(tmp_path: Path) -> None:
    """The header's checksum does not tell which of two flips that cancel out; one flip it always finds."""
    raw = bytearray(member("a.png") + END_OF_ARCHIVE)
    path = tmp_path / "t.tar"
    for bit in range(0, 512 * 8, 37):
        raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        with pytest.raises(DataError):
            scan_tar(path)
        raw[bit // 8] ^= 1 << bit % 8


def test_every_cut_is_found(tmp_path: Path) -> None:
    raw = b"".join(member(f"k{i}.png", bytes([i]) * (300 * i)) + member(f"k{i}.cls") for i in range(4)) + END_OF_ARCHIVE
    path = tmp_path / "t.tar"
    for cut in range(0, len(raw) - len(END_OF_ARCHIVE), 131):
        path.write_bytes(raw[:cut])
        with pytest.raises(DataError, match="cut short"):
            scan_tar(path)


Samples = dict[str, dict[str, bytes]]


def _ours(path: Path, samples: Samples) -> None:
    parts = [member(f"{key}.{extension}", payload) for key, members in samples.items() for extension, payload in members.items()]
    path.write_bytes(b"".join(parts) + END_OF_ARCHIVE)


def _tarfile(path: Path, samples: Samples, dialect: int) -> None:
    with tarfile.open(path, "w", format=dialect) as archive:
        for key, members in samples.items():
            for extension, payload in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                # A fraction of a second makes the pax dialect write a header of its own before every member.
                info.size, info.mtime = len(payload), 1700000000.25  # type: ignore[assignment]
                archive.addfile(info, io.BytesIO(payload))


def _tarfile_ustar(path: Path, samples: Samples) -> None:
    _tarfile(path, samples, tarfile.USTAR_FORMAT)


def _tarfile_gnu(path: Path, samples: Samples) -> None:
    _tarfile(path, samples, tarfile.GNU_FORMAT)


def _tarfile_pax(path: Path, samples: Samples) -> None:
    _tarfile(path, samples, tarfile.PAX_FORMAT)


def _webdataset(path: Path, samples: Samples) -> None:
    with TarWriter(str(path), encoder=False) as writer:
        for key, members in samples.items():
            writer.write({"__key__": key, **members})
