"""Reads over HTTP and from pretended buckets: every passing fault is absorbed and counted, every lasting one explained once."""

import json
import pickle
import re
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.data.fault_proxy import Delay, Fault, FaultProxy, Reset, Short, Status, Truncate, WholeFile
from tests.data.forked import exit_code_of_fork
from tests.data.range_server import RangeServer
from vitscale.config import DataError
from vitscale.data.storage.object_store import ObjectStorage, Timeouts
from vitscale.data.storage.retry import RetryPolicy
from vitscale.data.storage.storage import open_storage
from vitscale.data.types import UnreachableDataError

CONTENT = bytes(range(256)) * 40
ODD_NAME = "sub folder/a=b+c,d@e.tar"
QUICK = RetryPolicy(first_pause_seconds=0.001, longest_pause_seconds=0.01)
SHORT_TIMEOUTS = Timeouts(connect=1.0, stall=0.3, request=2.0)
FAULTS = [Status(503), Status(429), Status(500), Status(502, b""), Status(408), Truncate(), Truncate(0.0), Short(), Reset(), Delay(1.0)]


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultProxy]:
    files = {"set/a.tar": CONTENT, f"set/{ODD_NAME}": CONTENT, "bucket/set/a.tar": CONTENT, "devstoreaccount1/box/set/a.tar": CONTENT}
    with RangeServer(files) as server, FaultProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def storage(proxy: FaultProxy) -> ObjectStorage:
    proxy.inject([])
    return ObjectStorage(f"{proxy.url}/set", policy=QUICK, timeouts=SHORT_TIMEOUTS)


def test_reads(storage: ObjectStorage) -> None:
    assert storage.size("a.tar") == len(CONTENT)
    assert storage.read_file("a.tar") == CONTENT
    assert storage.read_range("a.tar", offset=250, length=300) == CONTENT[250:550]
    assert storage.read_range("a.tar", offset=5, length=0) == b""
    assert storage.read_range(ODD_NAME, offset=0, length=256) == CONTENT[:256]
    assert storage.io_counters() == {"reads": 3, "bytes_read": len(CONTENT) + 556, "retries": 0}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_passing_fault_of_a_range_is_absorbed_and_counted(storage: ObjectStorage, proxy: FaultProxy, fault: Fault) -> None:
    proxy.inject([fault])
    assert storage.read_range("a.tar", offset=100, length=5000) == CONTENT[100:5100]
    assert storage.io_counters() == {"reads": 1, "bytes_read": 5000, "retries": 1}


@pytest.mark.parametrize("fault", [Status(503), Truncate(), Reset(), Delay(1.0)], ids=str)
def test_a_passing_fault_of_a_whole_file_is_absorbed_and_counted(storage: ObjectStorage, proxy: FaultProxy, fault: Fault) -> None:
    proxy.inject([fault, fault])
    assert storage.read_file("a.tar") == CONTENT
    assert storage.io_counters()["retries"] == 2


@pytest.mark.parametrize("fault", [Status(503), Reset()], ids=str)
def test_a_passing_fault_of_a_size_is_absorbed_and_counted(storage: ObjectStorage, proxy: FaultProxy, fault: Fault) -> None:
    proxy.inject([fault])
    assert storage.size("a.tar") == len(CONTENT)
    assert storage.io_counters()["retries"] == 1


def test_many_different_faults_in_a_row(storage: ObjectStorage, proxy: FaultProxy) -> None:
    faults = [Status(503)] * 9 + [Truncate(), Reset(), Status(429)]
    proxy.inject(faults)
    assert storage.read_range("a.tar", offset=0, length=len(CONTENT)) == CONTENT
    assert storage.io_counters()["retries"] == len(faults)


def test_a_lasting_outage_ends_in_one_paragraph(proxy: FaultProxy) -> None:
    storage = ObjectStorage(f"{proxy.url}/set", policy=RetryPolicy(num_tries=3, first_pause_seconds=0.001))
    proxy.inject([Status(503)] * 10)
    with pytest.raises(
        DataError, match=r"set/a\.tar: could not be read: 3 tries in .* failed, the last with HTTP 503 \(SlowDown\)\. Check"
    ):
        storage.read_range("a.tar", offset=0, length=1)
    assert storage.io_counters()["retries"] == 2
    assert len(proxy.requests) == 3


def test_an_outage_does_not_take_longer_than_the_policy(proxy: FaultProxy) -> None:
    policy = RetryPolicy(first_pause_seconds=0.001, total_seconds=0.5)
    storage = ObjectStorage(f"{proxy.url}/set", policy=policy, timeouts=SHORT_TIMEOUTS)
    proxy.inject([Delay(1.0)] * 50)
    start = time.monotonic()
    with pytest.raises(DataError, match="the last with a time-out"):
        storage.read_range("a.tar", offset=0, length=1)
    assert time.monotonic() - start < 2.0


def test_nobody_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    storage = ObjectStorage(f"http://127.0.0.1:{port}/set", policy=RetryPolicy(num_tries=2, first_pause_seconds=0.001))
    with pytest.raises(DataError, match=r"2 tries in .* failed, the last with a connection that could not be made"):
        storage.read_file("manifest.json")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "no such file"),
        (403, "lets nobody read this without a password"),
        (401, "lets nobody read this without a password"),
        (400, r"refused the request \(HTTP 400\)"),
        (416, "cut short"),
    ],
)
def test_a_lasting_answer_is_asked_for_once(storage: ObjectStorage, proxy: FaultProxy, status: int, message: str) -> None:
    proxy.inject([Status(status, b"<html>")] * 5)
    with pytest.raises(DataError, match=rf"/set/a\.tar: .*{message}") as caught:
        storage.read_range("a.tar", offset=0, length=10)
    assert caught.value.exit_code == 10
    assert "\n" not in str(caught.value)
    assert storage.io_counters()["retries"] == 0
    assert len(proxy.requests) == 1
    assert isinstance(caught.value, UnreachableDataError) == (status not in (404, 416)), "whole, and out of reach for now"


@pytest.mark.parametrize(("offset", "length"), [(len(CONTENT) - 4, 5), (len(CONTENT), 1), (10 * len(CONTENT), 4)])
def test_a_file_that_ends_too_early(storage: ObjectStorage, offset: int, length: int) -> None:
    with pytest.raises(DataError, match=r"a\.tar: cut short, the file ends before"):
        storage.read_range("a.tar", offset=offset, length=length)
    assert storage.io_counters()["retries"] == 0


@pytest.mark.parametrize("operation", ["size", "read_file"])
def test_a_missing_file_is_named(storage: ObjectStorage, operation: str) -> None:
    with pytest.raises(DataError, match=r"/set/none\.tar: no such file"):
        getattr(storage, operation)("none.tar")


def test_a_server_without_ranges_is_refused(storage: ObjectStorage, proxy: FaultProxy) -> None:
    proxy.inject([WholeFile()])
    with pytest.raises(DataError, match="does not answer ranges"):
        storage.read_range("a.tar", offset=1, length=5)


def test_a_name_that_cannot_be(storage: ObjectStorage) -> None:
    with pytest.raises(DataError, match="not a name that this store can hold"):
        storage.read_range("a/../b.tar", offset=0, length=1)


def test_http_servers_cannot_be_listed(storage: ObjectStorage) -> None:
    with pytest.raises(DataError, match="cannot be asked which files it holds"):
        storage.list_files(".tar")


def test_pickle(storage: ObjectStorage) -> None:
    storage.read_range("a.tar", offset=0, length=1)
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.root == storage.root
    assert copy.read_range("a.tar", offset=1, length=2) == b"\x01\x02"
    assert copy.io_counters()["reads"] == 1


def test_threads(storage: ObjectStorage, proxy: FaultProxy) -> None:
    proxy.inject([Status(503), Reset(), Truncate()] * 5)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: storage.read_range("a.tar", offset=i * 100, length=100), range(100)))
    assert b"".join(parts) == CONTENT[:10000]
    counters = storage.io_counters()
    assert (counters["reads"], counters["bytes_read"]) == (100, 10000)
    # A connection that the server closed may be picked up once more before the client knows.
    assert 15 <= counters["retries"] <= 25


def test_a_fork_is_told_instead_of_hanging(storage: ObjectStorage) -> None:
    storage.read_range("a.tar", offset=0, length=1)

    def work() -> None:
        with pytest.raises(UnreachableDataError, match="spawn or forkserver"):
            storage.read_range("a.tar", offset=0, length=1)

    assert exit_code_of_fork(work) == 0


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(DataError, match=re.escape("s3://bucket/x: reading from object stores")) as caught:
        open_storage("s3://bucket/x")
    assert "pip install 'vitscale[s3]'" in str(caught.value)


@pytest.fixture
def google(proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStorage:
    account = {"gcs_base_url": proxy.url, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    proxy.inject([])
    return ObjectStorage("gs://bucket/set", policy=QUICK)


@pytest.fixture
def azure(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> ObjectStorage:
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", proxy.url)
    proxy.inject([])
    return ObjectStorage("az://box/set", policy=QUICK)


@pytest.mark.parametrize("kind", ["google", "azure"])
def test_other_clouds_by_their_environment(kind: str, proxy: FaultProxy, request: pytest.FixtureRequest) -> None:
    storage = request.getfixturevalue(kind)
    proxy.inject([Status(503), Truncate()])
    assert storage.read_range("a.tar", offset=3, length=700) == CONTENT[3:703]
    assert storage.io_counters()["retries"] == 2
    proxy.inject([Status(403, b"<Error><Code>AuthenticationFailed</Code></Error>")])
    with pytest.raises(DataError, match=r"refused the credentials of the environment \(HTTP 403, AuthenticationFailed\)"):
        storage.read_range("a.tar", offset=3, length=7)


def test_settings_that_are_incomplete_are_explained_without_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_USE_EMULATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "hunter2hunter2")
    with pytest.raises(DataError, match=r"incomplete or wrong\. Set AZURE_STORAGE_ACCOUNT_NAME") as caught:
        open_storage("az://box/set").read_file("manifest.json")
    assert "hunter2" not in str(caught.value)
