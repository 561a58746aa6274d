"""A bucket of a real S3 server behind a proxy that spoils requests, for the tests of remote checkpoints."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.data.servers import BUCKET, moto_server
from tests.data.write_faults import WriteFaultProxy
from vitscale.data.storage.object_writer import ObjectWriter
from vitscale.data.storage.retry import RetryPolicy

QUICK = RetryPolicy(num_tries=12, first_pause_seconds=0.001, longest_pause_seconds=0.01, total_seconds=20.0)
PART_BYTES = 5 << 20
SECRET = "hunter2hunter2"


@contextmanager
def faulty_store() -> Iterator[WriteFaultProxy]:
    """The server and its proxy, in processes and threads of their own."""
    with moto_server() as port, WriteFaultProxy(port) as proxy:
        yield proxy


def environment(proxy: WriteFaultProxy) -> dict[str, str]:
    """What the client needs to know."""
    return {"AWS_ENDPOINT_URL": proxy.url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}


def fresh_address(proxy: WriteFaultProxy, *, monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """An address that nothing lies below, with the environment to reach it and no faults pending."""
    for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    for variable, value in environment(proxy).items():
        monkeypatch.setenv(variable, value)
    proxy.inject([])
    proxy.refuse([])
    return f"s3://{BUCKET}/{name.replace('[', '-').rstrip(']')}"


def quick_writer(address: str) -> ObjectWriter:
    """A client that does not wait long between tries, and sends small parts."""
    return ObjectWriter(address, policy=QUICK, part_bytes=PART_BYTES)
