"""Which cluster is meant, and that one which is not there is told at once."""

import re
import socket
import time

import pytest

from vitscale.config import UsageError
from vitscale_launch.address import ray_address, require_listener


def test_the_address_given_comes_before_the_environment() -> None:
    environment = {"RAY_ADDRESS": "10.0.0.1:6379"}
    assert ray_address("10.0.0.2:6379", environment) == "10.0.0.2:6379"
    assert ray_address(None, environment) == "10.0.0.1:6379"
    assert ray_address(None, {"RAY_ADDRESS": ""}) is None
    assert ray_address("local", environment) is None
    assert ray_address(None, {"RAY_ADDRESS": "local"}) is None


@pytest.mark.parametrize("address", [None, "auto", "ray://head:10001", "head", "10.0.0.1", "head:²"])
def test_only_a_plain_address_can_be_tried_beforehand(address: str | None) -> None:
    require_listener(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_where_nobody_listens_is_told_at_once(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"{host}:{head.getsockname()[1]}"
        require_listener(address)
    begin = time.monotonic()
    with pytest.raises(UsageError, match=rf"--address {address}: nobody listens there \(Connection refused\)"):
        require_listener(address)
    assert time.monotonic() - begin < 10.0


@pytest.mark.parametrize("host", ["nosuch.invalid", "10.0.0..1", ".", "h" * 64])
def test_a_host_without_an_address_is_told(host: str) -> None:
    with pytest.raises(UsageError, match=rf"--address {re.escape(host)}:6379: nobody listens there"):
        require_listener(f"{host}:6379")
