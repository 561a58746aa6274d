"""Training batches from a bucket behind a faulty network are those from disk, through loader processes that share a cache."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.fault_proxy import FaultProxy, Reset, Status, Truncate
from tests.data.packed import pack_images
from tests.data.remote_batches import NUM_STEPS, batch_hashes
from tests.data.servers import moto_server, upload

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    pack_images(folder, num_samples=103, samples_per_shard=40)
    return folder


@pytest.fixture(scope="module")
def proxy(folder: Path) -> Iterator[FaultProxy]:
    with moto_server() as port, FaultProxy(port) as proxy:
        upload(port, {f"train/{path.name}": path.read_bytes() for path in folder.iterdir()})
        yield proxy


@pytest.mark.parametrize(("num_workers", "is_cached"), [(0, False), (2, True)])
def test_batches_from_a_bucket(folder: Path, proxy: FaultProxy, num_workers: int, is_cached: bool, tmp_path: Path) -> None:
    proxy.inject([None, Status(503), Reset(), Truncate(), Status(429)])
    command = [sys.executable, "-m", "tests.data.remote_batches", "s3://bucket/train", str(num_workers)]
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": proxy.url}
    done = subprocess.run(
        [*command, str(tmp_path / "cache")] if is_cached else command,
        env={**os.environ, **keys},
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == batch_hashes(str(folder), num_workers=0)
    num_ranges = sum(request.startswith("GET") and request.endswith(".tar") for request in proxy.requests)
    if is_cached:  # three shards of one block each, perhaps missed by both workers at once, and the four faults
        assert num_ranges <= 3 * num_workers + 4
    else:
        assert num_ranges > NUM_STEPS
