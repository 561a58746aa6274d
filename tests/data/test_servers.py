"""Data sets read from a real S3 server behind a faulty network, and from nginx; and every way to be refused by them."""

import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.fault_proxy import FaultProxy, Flip, Reset, Short, Status, Truncate
from tests.data.packed import pack
from tests.data.servers import demand_credentials, has_nginx, moto_server, nginx_server, overwrite, upload
from vitscale.config import DataError
from vitscale.data.dataset import open_dataset
from vitscale.data.manifest import MANIFEST_NAME, encode_manifest
from vitscale.data.reader import SampleReader
from vitscale.data.storage.block_cache import CacheConfig
from vitscale.data.storage.object_store import ObjectStorage
from vitscale.data.storage.storage import open_storage
from vitscale.data.types import StoredFile

pytestmark = pytest.mark.dist

NUM_SAMPLES = 40
SECRET = "hunter2/Secret+Key"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    pack(folder, [{"png": bytes([i]) * 5000, "cls": b"1"} for i in range(NUM_SAMPLES)], samples_per_shard=16)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[FaultProxy]:
    with moto_server() as port, FaultProxy(port) as proxy:
        upload(port, {f"sets/train/{path.name}": path.read_bytes() for path in folder.iterdir()})
        yield proxy


@pytest.fixture
def s3(server: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAHUNTER2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    server.inject([])
    return server


def _payloads(root: str | Path, **options: CacheConfig) -> list[bytes]:
    return [sample.members["png"].tobytes() for sample in SampleReader(open_dataset(root, **options)).read(0, NUM_SAMPLES)]


@pytest.mark.usefixtures("s3")
def test_a_data_set_in_a_bucket_is_that_on_disk(folder: Path) -> None:
    assert _payloads("s3://bucket/sets/train") == _payloads(folder)
    assert open_dataset("s3://bucket/sets/train").sha256 == open_dataset(folder).sha256


def test_opening_asks_for_little(s3: FaultProxy) -> None:
    open_dataset("s3://bucket/sets/train")
    assert [request.split("/sets/")[1] for request in s3.requests] == [
        "train/manifest.json", "train/train-00000.tar", "train/train-00002.tar",
    ]  # fmt: skip


def test_every_kind_of_fault_at_once(s3: FaultProxy, folder: Path) -> None:
    dataset = open_dataset("s3://bucket/sets/train")
    reader = SampleReader(pickle.loads(pickle.dumps(dataset)))
    s3.inject([Status(503), Status(429), Truncate(), Reset(), None, Short(), Truncate(0.0), Flip(), None, Status(500), Reset()])
    assert [sample.members["png"].tobytes() for sample in reader.read(0, NUM_SAMPLES)] == _payloads(folder)
    assert reader.io_counters()["retries"] >= 8


def test_nine_503s_are_absorbed_within_eight_seconds_and_a_cut_body_by_one_request(s3: FaultProxy, folder: Path) -> None:
    storage = open_storage("s3://bucket/sets/train")
    expected = (folder / "train-00000.tar").read_bytes()[512:4608]
    s3.inject([Status(503)] * 9)
    start = time.monotonic()
    assert storage.read_range("train-00000.tar", offset=512, length=4096) == expected
    seconds = time.monotonic() - start
    assert (storage.io_counters()["retries"], len(s3.requests)) == (9, 10)
    assert seconds <= 8.0
    print(f"9 x 503 absorbed in {seconds:.1f} s")
    s3.inject([Truncate()])
    assert storage.read_range("train-00000.tar", offset=512, length=4096) == expected
    assert (storage.io_counters()["retries"], len(s3.requests)) == (10, 2)


def test_the_tars_in_a_bucket_and_the_index_on_disk(s3: FaultProxy, folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.idx.npy"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = open_dataset(folder).manifest.model_copy(update={"shards_root": "s3://bucket/sets/train"})
    (tmp_path / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    cache = CacheConfig(path=str(tmp_path / "cache"), max_gib=0.0625)
    assert _payloads(tmp_path, cache=cache) == _payloads(folder)
    s3.inject([])
    assert _payloads(tmp_path, cache=cache) == _payloads(folder)
    assert not any(request.startswith("GET") for request in s3.requests)


def test_a_manifest_in_a_bucket_names_no_folder(s3: FaultProxy, folder: Path) -> None:
    manifest = open_dataset(folder).manifest.model_copy(update={"shards_root": "/data/tars"})
    upload(s3.upstream_port, {"sets/elsewhere/manifest.json": encode_manifest(manifest)})
    with pytest.raises(DataError, match="names a folder of some machine"):
        open_dataset("s3://bucket/sets/elsewhere")


def test_listing(s3: FaultProxy, folder: Path) -> None:
    s3.inject([Status(503)])
    found = open_storage("s3://bucket/sets").list_files(".tar")
    assert [file.name for file in found] == [f"train/train-0000{i}.tar" for i in range(3)]
    assert [file.size for file in found] == [shard.bytes for shard in open_dataset(folder).shards]
    assert open_storage("s3://bucket/none").list_files(".tar") == []


@pytest.mark.usefixtures("s3")
def test_a_file_that_is_written_anew_has_another_version() -> None:
    versions = set()
    for content in (b"one", b"two"):
        overwrite({"versions/a.tar": content})
        (file,) = open_storage("s3://bucket/versions").list_files(".tar")
        assert file == StoredFile(name="a.tar", size=3, version=file.version)
        assert open_storage("s3://bucket/versions").list_files(".tar") == [file]
        versions.add(file.version)
    assert len(versions) == 2


def test_a_missing_shard_is_found_at_once(s3: FaultProxy, folder: Path) -> None:
    upload(s3.upstream_port, {"sets/manifest-alone/manifest.json": (folder / MANIFEST_NAME).read_bytes()})
    with pytest.raises(DataError, match=r"s3://bucket/sets/manifest-alone/train-00000\.tar: no such file"):
        open_dataset("s3://bucket/sets/manifest-alone")


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("s3://bucket/nothing", r"s3://bucket/nothing/manifest\.json: no such file"),
        ("s3://no-such-bucket/sets/train", "there is no bucket or container 'no-such-bucket'"),
    ],
)
def test_what_is_not_there(s3: FaultProxy, root: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(root)
    assert caught.value.exit_code == 10
    assert len(s3.requests) == 1


@pytest.mark.parametrize("operation", ["size", "read_file", "read_range", "list_files"])
def test_a_missing_bucket_is_named_whatever_is_asked(s3: FaultProxy, operation: str) -> None:
    storage = open_storage("s3://no-such-bucket/x")
    arguments = {"read_range": {"offset": 0, "length": 1}}.get(operation, {})
    with pytest.raises(DataError, match="there is no bucket or container 'no-such-bucket'"):
        getattr(storage, operation)("a.tar", **arguments)
    assert s3.requests


@pytest.mark.parametrize("operation", ["size", "read_file", "list_files"])
def test_wrong_credentials_are_explained_and_not_shown(s3: FaultProxy, operation: str) -> None:
    demand_credentials(s3.upstream_port, demand=True)
    try:
        storage = open_storage("s3://bucket/sets/train")
        with pytest.raises(DataError, match=r"refused the credentials of the environment \(HTTP 403, InvalidAccessKeyId\)") as caught:
            getattr(storage, operation)("manifest.json")
    finally:
        demand_credentials(s3.upstream_port, demand=False)
    shown = str(caught.value) + repr(caught.value.__context__) + repr(caught.value.__cause__)
    assert "hunter2" not in shown.lower()
    assert storage.io_counters()["retries"] == 0


@pytest.mark.skipif(not has_nginx(), reason="needs nginx")
def test_a_data_set_on_nginx(folder: Path, tmp_path: Path) -> None:
    with nginx_server(folder.parent, work=tmp_path) as port, FaultProxy(port) as proxy:
        root = f"{proxy.url}/{folder.name}"
        proxy.inject([Status(503), Reset()])
        assert _payloads(root) == _payloads(folder)
        proxy.inject([None, Truncate()])
        storage = ObjectStorage(root)
        assert storage.size("train-00000.tar") == (folder / "train-00000.tar").stat().st_size
        assert storage.read_range("train-00000.tar", offset=7, length=9000) == (folder / "train-00000.tar").read_bytes()[7:9007]
        with pytest.raises(DataError, match="no such file"):
            open_dataset(f"{proxy.url}/none")
        with pytest.raises(DataError, match="cut short"):
            storage.read_range("train-00000.tar", offset=10**7, length=1)
