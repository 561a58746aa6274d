"""Extension headers as Python's tarfile writes them, and every way to damage or misuse one."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.data.tar_dialects import NOTHING, Announced, MalformedTarError

PAX, PAX_OF_ALL, LONG_NAME, FOLDER = b"xgL5"


def announcement(info: tarfile.TarInfo, *, dialect: int) -> Announced:
    """What the entries that tarfile writes before the member's own header say."""
    stream = io.BytesIO(info.tobuf(dialect, "utf-8"))
    announced = NOTHING
    while (header := stream.read(512))[156:157] in (b"x", b"L"):
        size = int(header[124:135], 8)
        announced = announced.after(header[156], stream.read(-(-size // 512) * 512)[:size])
    return announced


@given(
    name=st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=101, max_size=300).filter(lambda name: not name.endswith("/"))
)
@pytest.mark.parametrize("dialect", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_that_do_not_fit_the_header(name: str, dialect: int) -> None:
    info = tarfile.TarInfo(name)
    announced = announcement(info, dialect=dialect)
    # pax splits an ASCII name that has a slash in the right place over the ustar fields, and announces nothing.
    assert announced.name == name or (dialect == tarfile.PAX_FORMAT and announced == NOTHING and name.isascii() and "/" in name)


def test_a_size_that_does_not_fit_the_header() -> None:
    info = tarfile.TarInfo("a")
    info.size = 9 << 30
    assert announcement(info, dialect=tarfile.PAX_FORMAT) == Announced(size=9 << 30)


def test_times_owners_and_comments_announce_nothing() -> None:
    info = tarfile.TarInfo("a")
    info.mtime, info.uname = 1.25, "Zoë"  # type: ignore[assignment]
    assert announcement(info, dialect=tarfile.PAX_FORMAT) is NOTHING
    assert NOTHING.after(PAX_OF_ALL, b"52 comment=0123456789012345678901234567890123456789\n") is NOTHING


def test_a_folder_ends_what_was_announced() -> None:
    assert NOTHING.after(PAX, b"10 path=a\n").after(FOLDER, b"") == NOTHING


def test_records_add_up_and_values_may_hold_anything() -> None:
    payload = b"22 comment=size=1\nb=c\n" + b"12 path=a=b\n" + b"9 size=7\n"
    assert NOTHING.after(PAX, payload) == Announced(name="a=b", size=7)
    assert NOTHING.after(LONG_NAME, "ä\0".encode()).after(PAX, b"9 size=7\n") == Announced(name="ä", size=7)


@pytest.mark.parametrize(
    ("kind", "payload", "message"),
    [
        (PAX, b"99 path=a\n", "damaged pax header"),
        (PAX, b"8 path=a\n", "damaged pax header"),
        (PAX, b"10 path=ab", "damaged pax header"),
        (PAX, b"path=a\n", "damaged pax header"),
        (PAX, b"0 path=a\n", "damaged pax header"),
        (PAX, b"-10 path=a\n", "damaged pax header"),
        (PAX, b"10 path=a\n\0\0", "damaged pax header"),
        (PAX, b"10 path=\xff\n", "not UTF-8"),
        (PAX, b"10 size=x\n", "a size that is no number"),
        (PAX, b"11 size=-1\n", "a size that is no number"),
        (PAX, b"21 hdrcharset=BINARY\n", "another encoding"),
        (PAX, b"22 GNU.sparse.major=1\n", "a sparse file"),
        (PAX_OF_ALL, b"10 path=a\n", "every member the same path"),
        (PAX_OF_ALL, b"9 size=7\n", "every member the same size"),
        (LONG_NAME, b"\xff\0", "not UTF-8"),
        (ord("K"), b"a\0", "an entry of type 'K'"),
        (ord("1"), b"", "a hard link"),
        (ord("2"), b"", "a symbolic link"),
        (ord("3"), b"", "a device"),
        (ord("6"), b"", "a pipe"),
        (ord("S"), b"", "a sparse file"),
        (ord("7"), b"", "an entry of type '7'"),
    ],
)
def test_what_is_refused(kind: int, payload: bytes, message: str) -> None:
    with pytest.raises(MalformedTarError, match=message):
        NOTHING.after(kind, payload)


def test_two_names_are_refused_and_the_same_twice_is_not() -> None:
    announced = NOTHING.after(LONG_NAME, b"a\0")
    assert announced.after(PAX, b"10 path=a\n") == Announced(name="a")
    with pytest.raises(MalformedTarError, match="two names"):
        announced.after(PAX, b"10 path=b\n")
