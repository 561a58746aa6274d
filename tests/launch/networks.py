"""Programs in a network of their own, with an interface called probe that can be taken down and watched."""

import subprocess
import sys

from tests.facilities import with_network

PRELUDE = """
import os, subprocess, time
def is_up():
    return "UP" in subprocess.run(["ip", "link", "show", "probe"], capture_output=True, text=True).stdout.split(">")[0]
def wait_until(reached):
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)
subprocess.run(["ip", "link", "add", "probe", "type", "veth", "peer", "name", "other"], check=True)
subprocess.run(["ip", "link", "set", "probe", "up"], check=True)
wait_until(is_up)
"""


def in_network_of_its_own(program: str) -> str:
    """What the program prints, after the prelude."""
    command = [*with_network(), sys.executable, "-c", PRELUDE + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
