"""Writing to a real S3 server: files appear whole or not at all, passing faults are absorbed, lasting ones explained once."""

import http.client
import os
from collections.abc import Callable, Iterator

import pytest

from tests.data.servers import BUCKET, moto_server
from tests.data.write_faults import RefusedWrites, WriteFaultProxy
from vitscale.config import DataError
from vitscale.data.storage.object_writer import ObjectWriter, StoredObject
from vitscale.data.storage.retry import RetryPolicy
from vitscale.data.types import UnreachableDataError

PART = 5 << 20  # the least that S3 takes
QUICK = RetryPolicy(first_pause_seconds=0.001, longest_pause_seconds=0.01)
SLOW_DOWN = RefusedWrites(503, "SlowDown")
SECRET = "hunter2hunter2"
SHA = "5" * 64


@pytest.fixture(scope="module")
def proxy() -> Iterator[WriteFaultProxy]:
    with moto_server() as port, WriteFaultProxy(port) as proxy:
        yield proxy


@pytest.fixture
def root(proxy: WriteFaultProxy, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An address of this test's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    proxy.inject([])
    proxy.refuse([])
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').rstrip(']')}"


@pytest.fixture
def writer(root: str) -> ObjectWriter:
    return ObjectWriter(root, policy=QUICK, part_bytes=PART)


def _put(writer: ObjectWriter, name: str, data: bytes) -> None:
    writer.put(name, lambda: [data[start : start + 1_000_000] for start in range(0, len(data), 1_000_000)], num_bytes=len(data), sha256=SHA)


def _unfinished_uploads(proxy: WriteFaultProxy) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port)
    connection.request("GET", f"/{BUCKET}?uploads")
    return connection.getresponse().read()


SMALL = b"hello"
LARGE = bytes(range(256)) * 45_000


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_what_is_put_is_there_with_its_digest(writer: ObjectWriter, data: bytes) -> None:
    _put(writer, "step-1/a.bin", data)
    assert writer.read_file("step-1/a.bin") == data
    assert writer.stored("step-1/a.bin") == StoredObject(num_bytes=len(data), sha256=SHA)
    assert writer.list_sizes() == {"step-1/a.bin": len(data)}


def test_large_files_go_in_parts_and_small_ones_at_once(writer: ObjectWriter, proxy: WriteFaultProxy) -> None:
    _put(writer, "a", SMALL)
    assert len(proxy.writes) == 1
    proxy.refuse([])
    _put(writer, "a", LARGE)
    assert sum("partNumber=" in request for request in proxy.writes) == 3
    assert writer.read_file("a") == LARGE


def test_what_was_written_by_others_has_no_digest(writer: ObjectWriter, root: str, proxy: WriteFaultProxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port)
    connection.request("PUT", f"/{root.removeprefix('s3://')}/theirs", body=b"abc")
    assert connection.getresponse().status == 200
    assert writer.stored("theirs") == StoredObject(num_bytes=3, sha256=None)
    assert writer.stored("none") is None


def test_delete(writer: ObjectWriter) -> None:
    for name in ("a", "b/c", "d"):
        _put(writer, name, SMALL)
    writer.delete([])
    assert writer.list_sizes("b") == {"b/c": 5}
    assert writer.list_sizes("none") == {}
    writer.delete(["a", "none", "b/c"])
    assert writer.list_sizes() == {"d": 5}


def test_a_store_that_reports_missing_files_deletes_the_others(writer: ObjectWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    # Google's and Azure's way, which the server of these tests does not have.
    _put(writer, "a", SMALL)
    delete = writer._obstore.delete
    tried = []

    def strict(store: object, names: str | list[str]) -> None:
        tried.append(names)
        if isinstance(names, list) or names == "none":
            raise FileNotFoundError(names)
        delete(store, names)

    monkeypatch.setattr(writer._obstore, "delete", strict)
    writer.delete(["none", "a"])
    assert tried == [["none", "a"], "none", "a"]
    assert writer.list_sizes() == {}


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_nine_refusals_in_a_row_are_absorbed(writer: ObjectWriter, proxy: WriteFaultProxy, data: bytes) -> None:
    proxy.refuse([None] * (1 if data is LARGE else 0) + [SLOW_DOWN] * 9)
    _put(writer, "a", data)
    assert writer.read_file("a") == data


def test_only_the_part_that_failed_is_sent_again(writer: ObjectWriter, proxy: WriteFaultProxy) -> None:
    proxy.refuse([None, SLOW_DOWN, None, SLOW_DOWN])
    _put(writer, "a", LARGE)
    parts = [request for request in proxy.writes if "partNumber=" in request]
    assert len(parts) == 3 + 2
    assert writer.read_file("a") == LARGE


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_a_lasting_outage_is_one_paragraph_and_leaves_nothing(root: str, proxy: WriteFaultProxy, data: bytes) -> None:
    writer = ObjectWriter(root, policy=RetryPolicy(num_tries=2, first_pause_seconds=0.001), part_bytes=PART)
    proxy.refuse([SLOW_DOWN] * 100)
    with pytest.raises(
        UnreachableDataError, match=r"/a: could not be written: 2 tries in .* the last with HTTP 503 \(SlowDown\)\. Check"
    ) as caught:
        _put(writer, "a", data)
    assert "\n" not in str(caught.value)
    proxy.refuse([])
    assert writer.list_sizes() == {}


def test_content_that_fails_ends_the_upload_and_leaves_nothing(writer: ObjectWriter, proxy: WriteFaultProxy) -> None:
    _put(writer, "a", SMALL)

    def content() -> Iterator[bytes]:
        yield LARGE
        raise KeyError("the disk")

    with pytest.raises(KeyError, match="the disk"):
        writer.put("a", content, num_bytes=2 * len(LARGE), sha256=SHA)
    assert writer.read_file("a") == SMALL
    assert b"<UploadId>" not in _unfinished_uploads(proxy)


def test_a_file_whose_part_fails_too_often_is_sent_from_its_first_byte(root: str, proxy: WriteFaultProxy) -> None:
    writer = ObjectWriter(root, policy=RetryPolicy(num_tries=4, first_pause_seconds=0.001), part_bytes=PART)
    calls: list[int] = []

    def content() -> Iterator[bytes]:
        calls.append(1)
        yield LARGE

    proxy.refuse([None] + [SLOW_DOWN] * 12)  # after the start of the upload, all four tries of its three parts
    writer.put("a", content, num_bytes=len(LARGE), sha256=SHA)
    assert len(calls) >= 2
    assert writer.read_file("a") == LARGE


REFUSALS: list[tuple[str, Callable[[ObjectWriter], object]]] = [
    ("put", lambda writer: _put(writer, "a", SMALL)),
    ("put_parts", lambda writer: _put(writer, "a", LARGE)),
    ("delete", lambda writer: writer.delete(["a", "b"])),
]


@pytest.mark.parametrize("action", [action for _, action in REFUSALS], ids=[name for name, _ in REFUSALS])
def test_refused_credentials_are_explained_and_not_shown(
    writer: ObjectWriter, proxy: WriteFaultProxy, action: Callable[[ObjectWriter], object]
) -> None:
    proxy.refuse([RefusedWrites(403, "AccessDenied")] * 3)
    with pytest.raises(
        DataError, match=r"refused the credentials of the environment \(HTTP 403.*may write and delete here: AWS_"
    ) as caught:
        action(writer)
    assert SECRET not in str(caught.value)
    assert not isinstance(caught.value, UnreachableDataError)
    assert len(proxy.writes) == 1


@pytest.mark.usefixtures("root")
def test_a_missing_bucket_is_named() -> None:
    with pytest.raises(DataError, match="there is no bucket or container 'nowhere'"):
        _put(ObjectWriter("s3://nowhere/x", policy=QUICK), "a", SMALL)


def test_http_cannot_be_written() -> None:
    with pytest.raises(DataError, match="an HTTP server cannot be written to"):
        ObjectWriter("https://example.com/x")
