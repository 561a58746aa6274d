"""Training from a bucket behind a faulty network: the batches, and whole runs, are those from disk."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.data.fault_proxy import FaultProxy, Reset, Status, Truncate
from tests.data.packed import pack_images
from tests.data.remote_batches import NUM_STEPS, batch_hashes
from tests.data.servers import moto_server, upload
from tests.train.tiny_run import events, losses, pack_tiny, tiny_config, tiny_values
from vitscale import api
from vitscale.config import dump_yaml

pytestmark = pytest.mark.dist

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {"AWS_ACCESS_KEY_ID": "hunter2-access", "AWS_SECRET_ACCESS_KEY": "hunter2-secret", "AWS_SESSION_TOKEN": "hunter2-session"}


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
        cwd=ROOT,
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


def test_a_whole_run_from_a_bucket_is_that_from_disk_and_outlives_credentials_that_expire(proxy: FaultProxy, tmp_path: Path) -> None:
    upload(proxy.port, {f"tiny/{path.name}": path.read_bytes() for path in pack_tiny(tmp_path).iterdir()})
    disk = api.train(tiny_config(tmp_path, "name=disk"))
    (tmp_path / "run.yaml").write_text(dump_yaml(tiny_values(tmp_path)))

    # The first windows are read through passing faults; some batches are trained on before the token expires.
    passing = [Status(503), Truncate(), Reset(), Status(429)]
    proxy.inject([*[None] * 8, *passing, *[None] * 16, *[Status(403, b"<Error><Code>ExpiredToken</Code></Error>")] * 1000])
    stopped = train(tmp_path, "data.num_workers=0", endpoint=proxy.url)
    assert stopped.returncode == 10, stopped.stderr
    assert stopped.stderr.startswith("error: s3://bucket/tiny/train-0000")
    assert "refused the credentials of the environment (HTTP 403, ExpiredToken)" in stopped.stderr
    assert stopped.stderr.count("\n") == 1
    run_dir = tmp_path / "runs/tiny"
    assert 0 < max(losses(run_dir)) < disk.step
    curves = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert sum(event.value for event in curves.Scalars("data/io_retries")) == len(passing)

    proxy.inject([])
    again = train(tmp_path, "data.num_workers=1", endpoint=proxy.url)
    assert again.returncode == 0, again.stderr
    assert events(run_dir, "lost_samples") == []
    assert api.audit(disk.run_dir, run_dir).exit_code == 0

    assert not any("hunter2" in text for process in (stopped, again) for text in (process.stdout, process.stderr))
    assert not any(b"hunter2" in path.read_bytes() for path in run_dir.rglob("*") if path.is_file())


def train(folder: Path, *overrides: str, endpoint: str) -> subprocess.CompletedProcess[str]:
    """`vitscale train` on the data set in the bucket, as a user starts it."""
    keys = {**SECRETS, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vitscale", "train", "run.yaml", "data.path=s3://bucket/tiny", *overrides]
    return subprocess.run(command, cwd=folder, env={**os.environ, **keys}, capture_output=True, text=True, timeout=120)
