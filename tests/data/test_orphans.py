import os
import subprocess
import sys
import time
from pathlib import Path

PARENT = """
import multiprocessing, os, signal, time
from vitscale.data.orphans import end_with_parent

def child(connection):
    end_with_parent()
    connection.send(os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
    print(ours.recv(), process.is_alive(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_ends_with_its_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.run([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True, check=False)
    child, was_alive = parent.stdout.split()
    assert was_alive == "True"
    deadline = time.monotonic() + 10
    while Path("/proc", child).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path("/proc", child).exists()
