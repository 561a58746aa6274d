import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PARENT = """
import signal, sys
import torch
from pathlib import Path
from tests.data.test_loader import pack_images, share, train, ORDER

if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    loader = train(pack_images(Path(sys.argv[1]), num_samples=103), share=share(num_workers=2))
    next(loader)
    print("loading", flush=True)
    sys.stdin.readline()
    ids = [next(loader)["sample_id"].tolist() for _ in range(20)]
    assert ids == [ORDER.batch_ids(step * 16, global_batch=16).sample_ids.tolist() for step in range(1, 21)]
    print("still loading", flush=True)
    sys.stdin.readline()
"""


def processes_of_group(group: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


@pytest.mark.dist
def test_loader_processes_outlive_signals_to_the_group_and_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    shards = tmp_path / "shards"
    shards.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        [sys.executable, str(script), str(shards)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == "loading\n"
        assert len(processes_of_group(parent.pid)) >= 4  # parent, fork server, two loader processes
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.killpg(parent.pid, number)
        print(file=parent.stdin, flush=True)
        assert parent.stdout.readline() == "still loading\n"
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 10
        while processes_of_group(parent.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_of_group(parent.pid) == set()
    finally:
        for leftover in processes_of_group(parent.pid):
            os.kill(leftover, signal.SIGKILL)
