"""A network interface of this machine, taken down for a while: whether that is possible, and who brings it up again."""

import shutil
import subprocess

DOWN_AND_UP = """
sleep "$1"
routes=$(ip route show dev "$0")
ip link set "$0" down || exit 1
sleep "$2"
ip link set "$0" up || exit 1
echo "$routes" | while read -r route; do [ -z "$route" ] || ip route replace $route dev "$0"; done
"""
"""For a shell, with the interface, the seconds until then, and how many. Routes through a gateway do not come back by themselves."""


def why_not(interface: str) -> str | None:
    """What keeps this process from taking it down; None where nothing does."""
    if shutil.which("ip") is None:
        return "the command `ip` (iproute2) is missing on this machine"
    if not _ip("link", "show", "up", "dev", interface).stdout:
        return "this machine has no such network interface, or it is down; `ip link` lists them"
    # To say that it is up, as it is, takes the same right.
    tried = _ip("link", "set", interface, "up")
    return f"taking an interface down needs root: {tried.stderr.strip()}" if tried.returncode else None


def take_down_later(interface: str, *, after_seconds: float, seconds: float) -> None:
    """Returns at once. A process that nobody is the parent of takes it down, and up again: this one may die of the cut."""
    command = ["sh", "-c", f"({DOWN_AND_UP}) &", interface, str(after_seconds), str(seconds)]
    nowhere = subprocess.DEVNULL
    subprocess.run(command, start_new_session=True, stdin=nowhere, stdout=nowhere, stderr=nowhere, check=True)


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
