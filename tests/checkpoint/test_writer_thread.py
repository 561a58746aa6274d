"""The thread beside training: in order, one at a time, errors kept for who asks, and never in the way of the end."""

import subprocess
import sys
import threading
import weakref

import pytest

from tests.launcher import ROOT
from vitscale.checkpoint.writer_thread import WriterThread


@pytest.fixture
def writer() -> WriterThread:
    return WriterThread(name="test writer")


def test_work_is_done_in_order_in_one_other_thread(writer: WriterThread) -> None:
    gate, done = threading.Event(), list[int]()
    threads = set[int]()

    def work(number: int) -> int:
        gate.wait(20)
        threads.add(threading.get_ident())
        done.append(number)
        return number

    futures = [writer.submit(lambda number=number: work(number)) for number in range(5)]  # type: ignore[misc]
    assert not any(future.done() for future in futures)
    gate.set()
    assert [future.result(20) for future in futures] == [0, 1, 2, 3, 4] == done
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert writer.close(timeout_s=20)


def test_an_error_is_kept_and_the_next_work_is_done(writer: WriterThread) -> None:
    failed = writer.submit(lambda: 1 // 0)
    assert writer.submit(lambda: "next").result(20) == "next"
    with pytest.raises(ZeroDivisionError):
        failed.result(20)
    assert writer.close(timeout_s=20)


def test_it_keeps_nothing_of_what_it_has_done(writer: WriterThread) -> None:
    class Large:
        pass

    large = Large()
    gone = weakref.ref(large)
    writer.submit(lambda large=large: str(large)).result(20)  # type: ignore[misc]
    del large
    writer.submit(lambda: None).result(20)
    assert writer.close(timeout_s=20)
    assert gone() is None


def test_closing_waits_no_longer_than_asked(writer: WriterThread) -> None:
    gate = threading.Event()
    future = writer.submit(lambda: gate.wait(20) and writer.is_closing.is_set())
    assert not writer.close(timeout_s=0.01)
    gate.set()
    assert future.result(20) is True
    with pytest.raises(AssertionError, match="closed"):
        writer.submit(lambda: None)


def test_without_work_there_is_no_thread(writer: WriterThread) -> None:
    before = threading.active_count()
    assert writer.close(timeout_s=0.0)
    assert threading.active_count() == before


def test_a_process_ends_although_a_write_hangs() -> None:
    script = (
        "import threading\n"
        "from vitscale.checkpoint.writer_thread import WriterThread\n"
        "WriterThread(name='stuck').submit(threading.Event().wait)\n"
        "raise SystemExit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60, check=False).returncode == 7
