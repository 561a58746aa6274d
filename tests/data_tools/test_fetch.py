"""Every origin of Fashion-MNIST, the fall-back from one to the next, and that a folder is whole or absent."""

import errno
import gzip
import hashlib
import http.server
import multiprocessing
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from vitscale.config import DataError
from vitscale_data_tools import fetch
from vitscale_data_tools.fetch import Source, UnavailableError, fetch_fashion_mnist

CONTENT = {name: f"content of {name}".encode() for name in fetch.FULL_DIGESTS}
DIGESTS = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    folder = tmp_path / "origin"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(gzip.compress(content, compresslevel=1))
    return folder


@pytest.fixture
def base_url(origin: Path) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(origin))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def copying(origin: Path) -> Source:
    return Source(label="a folder", extent="full", digests=DIGESTS, obtain=partial(fetch.copy_files, origin=origin, names=tuple(DIGESTS)))


def holds_everything(folder: Path) -> bool:
    return {path.name: gzip.decompress(path.read_bytes()) for path in folder.iterdir()} == CONTENT


def test_files_are_accepted_by_content_however_they_were_compressed(tmp_path: Path, origin: Path) -> None:
    fetched = fetch_fashion_mnist(tmp_path / "new" / "raw", sources=[copying(origin)])
    assert fetched == fetch.Fetched(folder=tmp_path / "new" / "raw", extent="full")
    assert holds_everything(fetched.folder)


def test_a_second_fetch_touches_nothing(tmp_path: Path, origin: Path) -> None:
    folder = fetch_fashion_mnist(tmp_path / "raw", sources=[copying(origin)]).folder
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    failing = Source(label="never asked", extent="full", digests=DIGESTS, obtain=lambda _: pytest.fail("asked again"))
    assert fetch_fashion_mnist(folder, sources=[failing]).extent == "full"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["missing", "changed", "truncated", "no gzip"])
def test_a_damaged_source_is_passed_over_aloud_and_leaves_nothing(tmp_path: Path, origin: Path, damage: str) -> None:
    victim = origin / "train-images-idx3-ubyte.gz"
    whole = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes({"changed": gzip.compress(b"else"), "truncated": whole[:-9], "no gzip": b"<html>"}[damage])
    lines: list[str] = []
    with pytest.raises(DataError, match="no source has Fashion-MNIST"):
        fetch_fashion_mnist(tmp_path / "out" / "raw", sources=[copying(origin)], report=lines.append)
    assert any(victim.name in line and "not there" in line for line in lines)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_next_source_is_tried_when_one_fails(tmp_path: Path, origin: Path) -> None:
    def refuse(_: Path) -> None:
        raise UnavailableError("closed today")

    lines: list[str] = []
    sources = [Source(label="shop", extent="full", digests=DIGESTS, obtain=refuse), copying(origin)]
    assert holds_everything(fetch_fashion_mnist(tmp_path / "raw", sources=sources, report=lines.append).folder)
    assert lines[:3] == ["Fashion-MNIST: trying shop", "  not there: closed today", "Fashion-MNIST: trying a folder"]


def test_a_place_where_nothing_can_be_written(tmp_path: Path, origin: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file/raw: cannot be written: Not a directory"):
        fetch_fashion_mnist(tmp_path / "file" / "raw", sources=[copying(origin)])


def test_a_full_disk_is_no_reason_to_take_the_sample(tmp_path: Path, origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which alone would fit."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetch.shutil, "copyfile", full)
    small = Source(label="sample", extent="sample", digests=DIGESTS, obtain=lambda _: pytest.fail("asked"))
    with pytest.raises(DataError, match="out: cannot be written: No space left on device"):
        fetch_fashion_mnist(tmp_path / "out", sources=[copying(origin), small])
    assert [path.name for path in tmp_path.iterdir()] == ["origin"]


def test_what_a_killed_fetch_left_is_cleared_by_the_next(tmp_path: Path, origin: Path) -> None:
    def killed(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(
        target=fetch_fashion_mnist,
        args=(tmp_path / "out",),
        kwargs={"sources": [Source(label="x", extent="full", digests=DIGESTS, obtain=killed)]},
    )
    process.start()
    process.join()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["origin", "out.partial"]
    fetch_fashion_mnist(tmp_path / "out", sources=[copying(origin)])
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["origin", "out"]


def test_a_folder_with_something_else_is_refused_and_kept(tmp_path: Path, origin: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="Delete it or name another folder"):
        fetch_fashion_mnist(tmp_path, sources=[copying(origin)])
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_download(tmp_path: Path, base_url: str) -> None:
    fetch.download_files(tmp_path, base_url=base_url, names=tuple(DIGESTS))
    assert all(gzip.decompress((tmp_path / name).read_bytes()) == content for name, content in CONTENT.items())


def test_download_names_the_address_that_failed(tmp_path: Path, base_url: str) -> None:
    with pytest.raises(UnavailableError, match=rf"{base_url}/absent.gz: File not found"):
        fetch.download_files(tmp_path, base_url=base_url, names=("absent.gz",))
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:1/x: "):
        fetch.download_files(tmp_path, base_url="http://127.0.0.1:1", names=("x",), timeout_seconds=2)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\nset -e\n{script}\n")
    path.chmod(0o755)


def test_debian_package(tmp_path: Path, origin: Path, programs: Path) -> None:
    write_program(programs / "apt-get", f'test "$1" = download && touch "$2_1_all.deb" && test "$2" = {fetch.DEBIAN_PACKAGE}')
    target = fetch.DEBIAN_FOLDER.relative_to("/")
    write_program(programs / "dpkg", f'test "$1" = -x && test -f "$2" && mkdir -p "$3/{target}" && cp {origin}/* "$3/{target}"')
    (tmp_path / "staged").mkdir()
    fetch.unpack_debian_package(tmp_path / "staged")
    assert holds_everything(tmp_path / "staged")
    assert {path.name for path in tmp_path.iterdir()} == {"origin", "programs", "staged"}


def test_debian_package_says_why_not(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(programs / "apt-get", "echo first >&2; echo 'E: Unable to locate package' >&2; exit 100")
    with pytest.raises(UnavailableError, match="apt-get download dataset-fashion-mnist: E: Unable to locate package"):
        fetch.unpack_debian_package(tmp_path)
    write_program(programs / "apt-get", "exit 0")
    with pytest.raises(UnavailableError, match="left no package"):
        fetch.unpack_debian_package(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="there is no apt-get here"):
        fetch.unpack_debian_package(tmp_path)


def test_the_sample_is_what_its_digests_say_and_says_so(tmp_path: Path) -> None:
    lines: list[str] = []
    sources = fetch.standard_sources()
    fetched = fetch_fashion_mnist(tmp_path / "raw", sources=sources[-1:], report=lines.append)
    assert fetched.extent == "sample"
    assert "ONLY A SAMPLE" in lines[-1]
    images = gzip.decompress((fetched.folder / "train-images-idx3-ubyte.gz").read_bytes())
    assert len(images) == 16 + 800 * 28 * 28
    assert fetch_fashion_mnist(tmp_path / "raw", sources=sources, report=lines.append).extent == "sample"


def test_the_full_data_comes_before_the_sample() -> None:
    assert [source.extent for source in fetch.standard_sources()] == ["full", "full", "full", "sample"]
