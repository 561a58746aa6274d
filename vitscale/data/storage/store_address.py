"""Addresses of data sets outside the local file system, and what the environment must say about each kind of store."""

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from vitscale.config import DataError

SCHEMES = ("s3", "gs", "az", "http", "https")
"""What an address may start with."""

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN for temporary keys), or AWS_SKIP_SIGNATURE=true",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}
"""The environment variables that each kind of store takes its credentials from."""

_HTTP_SWITCHES = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Two letters at least: one letter before a colon is the drive of a foreign path, and no scheme.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")


@dataclass(frozen=True, kw_only=True)
class Address:
    """`scheme://bucket/prefix`, without any secret."""

    scheme: str
    bucket: str
    """Bucket or container; host and port of an HTTP server."""
    prefix: str
    url: str
    """As it was given."""


def is_address(root: str) -> bool:
    """Whether `root` starts with a scheme such as `s3:` or `pipe:`; anything else is a local folder."""
    return _SCHEME.match(root) is not None


def parse_address(root: str) -> Address:
    """Take an address apart. Raises `DataError` for another scheme, or for one that holds credentials, which are not echoed."""
    found = _SCHEME.match(root)
    assert found is not None, "is_address"
    scheme = found[1].lower()
    if scheme not in SCHEMES:
        raise DataError(
            f"{scheme}: is not a place that data is read from. Give a local folder (as ./{scheme}:... if a colon is part of its name) or "
            f"an address that starts with {', '.join(f'{known}://' for known in SCHEMES)}."
        )
    try:
        parts = urlsplit(root)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if not host or not root.isprintable():
        raise DataError(f"{scheme}: an address without a bucket or host. Write it as {scheme}://bucket/prefix.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        where = CREDENTIALS.get(scheme, "HTTP servers must serve the files without a password")
        raise DataError(
            f"{scheme}://{host}/...: an address must not hold a user name, a password or parameters after ? or #. Credentials come from "
            f"the environment: {where}."
        )
    return Address(scheme=scheme, bucket=parts.netloc, prefix=unquote(parts.path).strip("/"), url=root.rstrip("/"))


def allow_http(address: Address) -> bool:
    """Whether requests may go unencrypted. Raises `DataError` for an endpoint that would without being allowed to."""
    if address.scheme in ("http", "https"):
        return address.scheme == "http"
    switch = _HTTP_SWITCHES[address.scheme]
    if os.environ.get(switch, "").lower() in ("1", "true"):
        return True
    if address.scheme != "s3":
        return False
    endpoint = urlsplit(next(filter(None, map(os.environ.get, _ENDPOINTS)), ""))
    if endpoint.scheme != "http":
        return False
    if endpoint.hostname not in _LOOPBACK:
        raise DataError(
            f"{address.url}: the endpoint in the environment is an unencrypted http server ({endpoint.hostname}). Give its https address, "
            f"or set {switch}=true where the network between is trusted."
        )
    return True
