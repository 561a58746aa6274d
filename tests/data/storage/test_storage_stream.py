"""A file of a storage as a stream: the same bytes in any pieces, its end looked at without moving, a cut body as an error."""

import random
from pathlib import Path

import pytest

from vitscale.config import DataError
from vitscale.data.storage import storage_stream
from vitscale.data.storage.storage import LocalStorage
from vitscale.data.storage.storage_stream import StorageStream


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_stream, "_BLOCK_BYTES", 100)


def test_any_pieces_make_the_file(tmp_path: Path) -> None:
    content = random.Random(0).randbytes(1234)
    (tmp_path / "a").write_bytes(content)
    draws = random.Random(1)
    stream = StorageStream(LocalStorage(tmp_path), "a")
    assert (stream.head(7), stream.tail(9), stream.position, stream.size) == (content[:7], content[-9:], 0, 1234)
    read = b""
    while piece := stream.read(draws.randrange(1, 300)):
        read += piece
        assert stream.position == len(read)
    assert read == content
    assert StorageStream(LocalStorage(tmp_path), "a").readall() == content


def test_small_and_empty_files(tmp_path: Path) -> None:
    for content in (b"", b"ab"):
        (tmp_path / "a").write_bytes(content)
        stream = StorageStream(LocalStorage(tmp_path), "a")
        assert (stream.head(5), stream.tail(5), stream.readall()) == (content, content, content)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1000))
    stream = StorageStream(LocalStorage(tmp_path), "a")
    stream.read(100)
    (tmp_path / "a").write_bytes(bytes(150))
    with pytest.raises(DataError, match="cut short"):
        stream.readall()
    with pytest.raises(DataError, match="cannot be read"):
        StorageStream(LocalStorage(tmp_path), "b")
