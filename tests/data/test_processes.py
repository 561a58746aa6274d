import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info

from vitscale.config import DataError, UsageError
from vitscale.data.processes import IGNORED_SIGNALS, PartStream, _explain_loss, start_fork_server
from vitscale.data.worker import Part

ROOT = Path(__file__).parents[2]


class Numbers(IterableDataset[Part]):
    """Each worker yields batches that hold its number and a count."""

    def __init__(self, *, fail_at: int | None = None, bug: bool = False) -> None:
        self.fail_at = fail_at
        self.bug = bug

    def __iter__(self) -> Iterator[Part]:
        info = get_worker_info()
        worker = 0 if info is None else info.id
        for count in range(1000):
            if count == self.fail_at:
                if self.bug:
                    raise KeyError("a bug of ours")
                yield Part(error=DataError("train-00000.tar: sample 7 is damaged. Pack it again."))
                return
            yield Part(batch={"row": torch.tensor([worker, count, os.getpid()])})


def rows(stream: PartStream, count: int) -> list[list[int]]:
    batches = [next(stream).batch for _ in range(count)]
    return [batch["row"].tolist()[:2] for batch in batches if batch is not None]


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_fork_server_can_be_started_before_any_loader_and_serves_it() -> None:
    start_fork_server()
    start_fork_server()
    server = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    assert parent_of(server) == os.getpid()
    stream = PartStream(Numbers(), num_workers=1, prefetch=1)
    part = next(stream).batch
    assert part is not None
    assert parent_of(int(part["row"][2])) == server
    stream.close()


PROGRAM = """
import os
from tests.data.test_processes import Numbers
from vitscale.data.processes import PartStream

if __name__ == "__main__":
    before = dict(os.environ)
    stream = PartStream(Numbers(), num_workers=1, prefetch=1)
    print(next(stream).batch["row"].tolist()[:2], os.environ == before)
    stream.close()
"""


@pytest.mark.dist
def test_another_vitscale_in_the_working_folder_is_not_imported(tmp_path: Path) -> None:
    script = tmp_path / "program" / "train.py"
    script.parent.mkdir()
    script.write_text(PROGRAM)
    (tmp_path / "vitscale").mkdir()
    (tmp_path / "vitscale" / "__init__.py").write_text("raise RuntimeError('another vitscale')")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("[0, 0] True\n", "", 0)


def loader_processes() -> list[multiprocessing.process.BaseProcess]:
    return list(multiprocessing.active_children())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_are_asked_in_turn_and_leave_promptly(num_workers: int) -> None:
    stream = PartStream(Numbers(), num_workers=num_workers, prefetch=2)
    per_turn = max(1, num_workers)
    assert rows(stream, 6) == [[i % per_turn, i // per_turn] for i in range(6)]
    assert len(loader_processes()) == num_workers
    start = time.perf_counter()
    stream.close()
    assert time.perf_counter() - start < 4.5
    assert not loader_processes()
    assert next(stream, "ended") == "ended"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_workers_data_error_arrives_as_it_was(num_workers: int) -> None:
    stream = PartStream(Numbers(fail_at=1), num_workers=num_workers, prefetch=2)
    rows(stream, max(1, num_workers))
    with pytest.raises(DataError) as caught:
        next(stream)
    assert str(caught.value) == "train-00000.tar: sample 7 is damaged. Pack it again."
    assert not loader_processes()


def test_a_bug_in_a_worker_keeps_its_trace() -> None:
    stream = PartStream(Numbers(fail_at=0, bug=True), num_workers=1, prefetch=2)
    with pytest.raises(KeyError, match=r"(?s)Traceback.*a bug of ours"):
        next(stream)
    stream.close()


@pytest.mark.dist
def test_a_killed_process_is_reported_with_the_likely_cause() -> None:
    stream = PartStream(Numbers(), num_workers=2, prefetch=2)
    rows(stream, 2)
    victim = loader_processes()[0]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(
        DataError, match=r"A loader process was killed \(exit code -9\), .*memory ran out\. Lower data\.num_workers"
    ) as caught:
        rows(stream, 1000)
    assert "\n" not in str(caught.value)
    assert not loader_processes()


def test_a_process_that_ends_by_itself_did_not_run_out_of_memory() -> None:
    error = _explain_loss(-7)
    assert isinstance(error, DataError)
    assert "/dev/shm" in str(error)
    error = _explain_loss(1)
    assert isinstance(error, UsageError)
    assert 'call vitscale from under `if __name__ == "__main__":`' in str(error)


def test_the_signals_of_a_launcher_do_not_end_a_loader_process() -> None:
    stream = PartStream(Numbers(), num_workers=1, prefetch=2)
    rows(stream, 1)
    (process,) = loader_processes()
    assert process.pid is not None
    for number in IGNORED_SIGNALS:
        os.kill(process.pid, number)
    assert rows(stream, 20)[-1] == [0, 20]
    assert process.is_alive()
    stream.close()
