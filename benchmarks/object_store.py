"""What reading by ranges costs from a local folder, an HTTP server, an S3 server and the block cache, and how faults are absorbed.

    PYTHONPATH=. python benchmarks/object_store.py [--mebibytes 256] [--rounds 5]

The servers (nginx, moto's S3 server) run on the loopback of this machine, so they share its cores: the figures compare paths,
they are not those of a network. Every round measures each path once; the table shows medians. Needs `pip install 'vitscale[dev]'`.
"""

import argparse
import hashlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.data.fault_proxy import FaultProxy, Status
from tests.data.servers import BUCKET, has_nginx, moto_server, nginx_server, upload
from vitscale.data.dataset import open_dataset
from vitscale.data.index import INDEX_DTYPE, encode_index, index_name
from vitscale.data.manifest import MANIFEST_NAME, Manifest, Shard, encode_manifest
from vitscale.data.storage.block_cache import BlockCache
from vitscale.data.storage.cached_storage import CachedStorage
from vitscale.data.storage.storage import LocalStorage, Storage, open_storage

RANGE_BYTES = 5_200_000
SHARD_BYTES = 32 << 20
NUM_OUTAGES = 10
OPENED_SHARDS = 2000
SAMPLES_PER_SHARD = 10_000


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One pass over all ranges."""

    megabytes_per_second: float
    cpu_seconds_per_gigabyte: float


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=256, help="data read in each pass")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_REGION="us-east-1")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as servers:
        folder = Path(scratch)
        files = _write_shards(folder / "set", num_bytes=arguments.mebibytes << 20)
        s3_port = servers.enter_context(moto_server())
        upload(s3_port, {name: (folder / "set" / name).read_bytes() for name in files})
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{s3_port}"
        _report_throughput(_paths(folder, files=files, servers=servers), files=files, rounds=arguments.rounds)
        proxy = servers.enter_context(FaultProxy(s3_port))
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        _report_outages(proxy, name=next(iter(files)))
        _report_opening(folder / "many")


def _write_shards(folder: Path, *, num_bytes: int) -> dict[str, int]:
    """Files of random bytes; their sizes by name."""
    folder.mkdir()
    names = [f"{number:03d}.tar" for number in range(max(1, num_bytes // SHARD_BYTES))]
    for number, name in enumerate(names):
        (folder / name).write_bytes(random.Random(number).randbytes(SHARD_BYTES))
    return dict.fromkeys(names, SHARD_BYTES)


def _paths(folder: Path, *, files: dict[str, int], servers: ExitStack) -> dict[str, Callable[[], Storage]]:
    """Ways to the same bytes; each is opened anew for a pass."""
    local = str(folder / "set")
    paths: dict[str, Callable[[], Storage]] = {
        "local folder": lambda: open_storage(local),
        "S3 (moto)": lambda: open_storage(f"s3://{BUCKET}"),
    }
    if has_nginx():
        (folder / "nginx").mkdir()
        port = servers.enter_context(nginx_server(folder / "set", work=folder / "nginx"))
        paths["HTTP (nginx)"] = lambda: open_storage(f"http://127.0.0.1:{port}")
        paths["HTTP, cache fills"] = lambda: _cached(open_storage(f"http://127.0.0.1:{port}"), folder / f"cache-{time.time_ns()}", files)
    warm = folder / "cache-warm"
    _pass(_cached(LocalStorage(folder / "set"), warm, files), files)
    paths["cache, all hits"] = lambda: _cached(LocalStorage(folder / "set"), warm, files)
    return paths


def _cached(storage: Storage, cache: Path, files: dict[str, int]) -> Storage:
    return CachedStorage(storage, cache=BlockCache(cache, max_bytes=1 << 40), identity="benchmark", sizes=files)


def _report_throughput(paths: dict[str, Callable[[], Storage]], *, files: dict[str, int], rounds: int) -> None:
    passes: dict[str, list[Measured]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, opened in paths.items():
            passes[name].append(_pass(opened(), files))
    print(f"ranges of {RANGE_BYTES / 1e6:.1f} MB in random order, one thread; medians of {rounds} rounds")
    for name, measured in passes.items():
        speed = statistics.median(one.megabytes_per_second for one in measured)
        cpu = statistics.median(one.cpu_seconds_per_gigabyte for one in measured)
        print(f"  {name:20s} {speed:8.0f} MB/s   {cpu:6.2f} CPU-s/GB (client)")


def _pass(storage: Storage, files: dict[str, int]) -> Measured:
    ranges = [(name, offset, min(RANGE_BYTES, size - offset)) for name, size in files.items() for offset in range(0, size, RANGE_BYTES)]
    random.Random(0).shuffle(ranges)
    wall, cpu, num_bytes = time.perf_counter(), time.process_time(), 0
    for name, offset, length in ranges:
        num_bytes += len(storage.read_range(name, offset=offset, length=length))
    return Measured(
        megabytes_per_second=num_bytes / 1e6 / (time.perf_counter() - wall),
        cpu_seconds_per_gigabyte=(time.process_time() - cpu) / (num_bytes / 1e9),
    )


def _report_outages(proxy: FaultProxy, *, name: str) -> None:
    seconds = []
    for _ in range(NUM_OUTAGES):
        storage = open_storage(f"s3://{BUCKET}")
        proxy.inject([Status(503)] * 9)
        start = time.perf_counter()
        storage.read_range(name, offset=0, length=4096)
        seconds.append(time.perf_counter() - start)
        assert storage.io_counters()["retries"] == 9
    print(f"9 consecutive 503s absorbed: median {statistics.median(seconds):.1f} s, longest {max(seconds):.1f} s of {NUM_OUTAGES}")


def _report_opening(folder: Path) -> None:
    """Sparse tars of the right size: opening does not read them."""
    folder.mkdir()
    table = np.zeros(SAMPLES_PER_SHARD, INDEX_DTYPE)
    table["length"], table["offset"] = 1024, np.arange(SAMPLES_PER_SHARD) * 1024
    index, num_bytes = encode_index(table), SAMPLES_PER_SHARD * 1024
    digest = hashlib.sha256(index).hexdigest()
    shards = []
    for number in range(OPENED_SHARDS):
        shard = Shard(name=f"{number:06d}.tar", bytes=num_bytes, num_samples=SAMPLES_PER_SHARD, sha256=digest, index_sha256=digest)
        with open(folder / shard.name, "wb") as file:
            file.truncate(num_bytes)
        (folder / index_name(shard.name)).write_bytes(index)
        shards.append(shard)
    manifest = Manifest(
        split=None, num_samples=OPENED_SHARDS * SAMPLES_PER_SHARD, classes=None, members=("jpg",), shards=tuple(shards), source={}
    )
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    wall, cpu = time.perf_counter(), time.process_time()
    dataset = open_dataset(folder)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    print(f"opening {OPENED_SHARDS} shards with {dataset.num_samples / 1e6:.0f} M samples: {seconds:.2f} s ({cpu_seconds:.2f} CPU-s)")


if __name__ == "__main__":
    main()
