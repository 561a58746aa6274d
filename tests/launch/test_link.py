"""A link that is cut for a while: who may, and that it comes back whatever becomes of who cut it."""

import shutil
import subprocess
import sys

import pytest

from tests.facilities import with_network
from vitscale_launch.link import why_not

PRELUDE = """
import os, subprocess, time
from vitscale_launch.link import take_down_later, why_not
def is_up():
    return "UP" in subprocess.run(["ip", "link", "show", "probe"], capture_output=True, text=True).stdout.split(">")[0]
def wait_for(state):
    deadline = time.monotonic() + 20
    while is_up() is not state:
        assert time.monotonic() < deadline, state
        time.sleep(0.02)
subprocess.run(["ip", "link", "add", "probe", "type", "veth", "peer", "name", "other"], check=True)
subprocess.run(["ip", "link", "set", "probe", "up"], check=True)
def routes():
    return subprocess.run(["ip", "route", "show"], capture_output=True, text=True, check=True).stdout
"""


def in_network_of_its_own(program: str) -> str:
    """What the program prints, in a network with an interface called probe."""
    command = [*with_network(), sys.executable, "-c", PRELUDE + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2")
def test_an_interface_that_is_not_there_is_told() -> None:
    assert "no such network interface" in str(why_not("nosuch0"))


def test_who_may_not_is_told_beforehand_and_nothing_changes() -> None:
    program = """
assert "or it is down" in why_not("other")
assert why_not("probe") is None
assert is_up()
os.setuid(65534)
print(why_not("probe"))
assert is_up()
os.environ["PATH"] = "/nowhere"
print(why_not("probe"))
"""
    no_right, no_command = in_network_of_its_own(program).splitlines()
    assert no_right == "taking an interface down needs root: RTNETLINK answers: Operation not permitted"
    assert no_command == "the command `ip` (iproute2) is missing on this machine"


def test_it_goes_down_later_and_comes_back_with_its_routes_though_all_its_kin_are_killed() -> None:
    program = """
subprocess.run(["ip", "link", "set", "other", "up"], check=True)
subprocess.run(["ip", "addr", "add", "10.9.9.1/24", "dev", "probe"], check=True)
subprocess.run(["ip", "route", "add", "default", "via", "10.9.9.2", "metric", "100"], check=True)
before = routes()
pid = os.fork()
if not pid:
    os.setsid()
    take_down_later("probe", after_seconds=0.5, seconds=1.0)
    assert is_up(), "there is time to say so"
    time.sleep(60)
wait_for(False)
children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
assert not children, "it belongs to nobody"
os.killpg(pid, 9)
os.waitpid(pid, 0)
assert not is_up() and not routes()
wait_for(True)
deadline = time.monotonic() + 20
while routes() != before:
    assert time.monotonic() < deadline, (before, routes())
    time.sleep(0.02)
print("done")
"""
    assert in_network_of_its_own(program) == "done\n"
