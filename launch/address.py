"""Which Ray cluster a command works on, and whether anybody is there."""

import os
import socket
from collections.abc import Mapping

from vitscale.config import UsageError

_SECONDS_TO_CONNECT = 2.0


def ray_address(address: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The existing cluster to join: the one given, else that of RAY_ADDRESS; None, also for Ray's word "local", for one of our own."""
    found = address or environment.get("RAY_ADDRESS") or "local"
    return None if found == "local" else found


def require_listener(address: str | None) -> None:
    """Raise `UsageError` where nobody listens at `address`. To ask Ray itself takes seconds, and where nobody does, minutes."""
    if address is None:
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        return  # a name that only Ray can resolve
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_CONNECT).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: no host can be called that, such as one with two dots in a row
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--address {address}: nobody listens there ({reason}). Start a Ray cluster with `ray start --head`, mind its port"
            " (6379 unless --port says otherwise), or leave out --address and RAY_ADDRESS for a cluster on this machine."
        ) from None
