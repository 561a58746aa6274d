"""Addresses of stores: the allow-list, what must not be in them, and when requests may go unencrypted."""

import pytest

from vitscale.config import DataError
from vitscale.data.storage.store_address import Address, allow_http, is_address, parse_address

_SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "bucket", "prefix"),
    [
        ("s3://My.bucket/a/b", "My.bucket", "a/b"),
        ("s3://bucket", "bucket", ""),
        ("gs://bucket/with%20space/", "bucket", "with space"),
        ("az://container/x", "container", "x"),
        ("https://host:8443/data/train/", "host:8443", "data/train"),
    ],
)
def test_an_address_is_taken_apart(url: str, bucket: str, prefix: str) -> None:
    address = parse_address(url)
    assert (address.bucket, address.prefix, address.url) == (bucket, prefix, url.rstrip("/"))


@pytest.mark.parametrize("root", ["/data/train", "data/train", "./s3:x", "C:/data", "a/s3://b"])
def test_folders_are_no_addresses(root: str) -> None:
    assert not is_address(root)


@pytest.mark.parametrize("scheme", ["pipe", "file", "ftp", "ais", "memory", "s3a", "hdfs"])
def test_other_schemes_are_refused_by_name(scheme: str) -> None:
    with pytest.raises(DataError, match=f"^{scheme}: is not a place") as caught:
        parse_address(f"{scheme}://user:{_SECRET}@x/y")
    assert _SECRET not in str(caught.value)
    assert caught.value.exit_code == 10


@pytest.mark.parametrize(
    "url",
    [
        f"s3://key:{_SECRET}@bucket/x",
        f"https://user:{_SECRET}@host/x",
        f"https://{_SECRET}@host/x",
        f"https://host/x?X-Amz-Signature={_SECRET}",
        f"az://container/x?sv={_SECRET}",
        f"https://host/x#{_SECRET}",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_echoed(url: str) -> None:
    with pytest.raises(DataError, match="must not hold a user name, a password or parameters") as caught:
        parse_address(url)
    assert _SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://", "https:///path", "gs:bucket/x", "s3://[::1/x", "s3://bucket/a\nb"])
def test_an_address_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(DataError, match="without a bucket or host"):
        parse_address(url)


_S3 = parse_address("s3://bucket/x")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("address", "environment", "allowed"),
    [
        (_S3, {}, False),
        (_S3, {"AWS_ENDPOINT_URL": "https://store.example"}, False),
        (_S3, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}, True),
        (_S3, {"AWS_ENDPOINT_URL": "http://localhost:9000"}, True),
        (_S3, {"AWS_ENDPOINT_URL_S3": "http://[::1]:9000", "AWS_ENDPOINT_URL": "https://store.example"}, True),
        (_S3, {"AWS_ENDPOINT_URL": "http://store.example", "AWS_ALLOW_HTTP": "true"}, True),
        (parse_address("gs://bucket"), {}, False),
        (parse_address("gs://bucket"), {"GOOGLE_ALLOW_HTTP": "1"}, True),
        (parse_address("http://store.example/x"), {}, True),
        (parse_address("https://store.example/x"), {}, False),
    ],
)
def test_unencrypted_requests(address: Address, environment: dict[str, str], allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert allow_http(address) is allowed


def test_an_unencrypted_endpoint_elsewhere_needs_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{_SECRET}@store.example:9000/path")
    with pytest.raises(DataError, match=r"unencrypted http server \(store\.example\).*AWS_ALLOW_HTTP=true") as caught:
        allow_http(_S3)
    assert _SECRET not in str(caught.value)
