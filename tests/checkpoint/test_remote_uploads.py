"""Uploads in the background: newest first, failures tried again and told, nothing waited for that retention would delete."""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from tests.checkpoint.simulation import make_tensors, save_as
from tests.checkpoint.store import faulty_store, fresh_address, quick_writer
from vitscale.checkpoint.remote import RemoteCheckpoints, UploadCancelledError, Uploaded
from vitscale.checkpoint.remote_uploads import BackgroundUploads, UploadOutcome
from vitscale.checkpoint.retention import RetentionPolicy
from vitscale.config import CheckpointError

TENSORS = make_tensors(seed=1, shapes={"a": (4,)}, kinds=("weight",))
SECONDS = 20.0


class FakeRemote:
    """A store whose uploads wait until they are let through, and fail as told."""

    root = "s3://bucket/run"

    def __init__(self) -> None:
        self.started: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.prune_error: CheckpointError | None = None
        self.has_started = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def upload(self, path: Path, *, is_cancelled: Callable[[], bool]) -> Uploaded:
        self.started.append(path.name)
        self.has_started.release()
        while not self.may_end.acquire(timeout=0.005):
            if is_cancelled():
                raise UploadCancelledError
        if path.name in self.errors:
            raise self.errors.pop(path.name)
        return Uploaded(num_bytes=10, sent_bytes=5)

    def prune(self, policy: RetentionPolicy, *, saved: int, pending: Collection[int]) -> list[str]:
        assert policy.reasons([saved])[saved]
        assert saved in pending
        if self.prune_error is not None:
            raise self.prune_error
        return ["step-00000001"] if saved == 9 else []

    def let(self, count: int) -> None:
        """Let that many uploads end."""
        for _ in range(count):
            self.may_end.release()


@pytest.fixture
def remote() -> FakeRemote:
    return FakeRemote()


@pytest.fixture
def uploads(remote: FakeRemote) -> Iterator[BackgroundUploads]:
    uploads = BackgroundUploads(remote, policy=RetentionPolicy(keep=2, keep_every_steps=4))  # type: ignore[arg-type]
    yield uploads
    uploads.close()


def _start(uploads: BackgroundUploads, folder: Path, *steps: int) -> None:
    for step in steps:
        path = folder / f"step-{step:08d}"
        path.mkdir(exist_ok=True)
        uploads.start(path)


def _told(outcomes: list[UploadOutcome]) -> list[tuple[int, str | None, bool]]:
    return [(outcome.step, outcome.error, outcome.is_skipped) for outcome in outcomes]


def _wait_for(uploads: BackgroundUploads, count: int) -> list[UploadOutcome]:
    """As many outcomes."""
    outcomes: list[UploadOutcome] = []
    deadline = time.monotonic() + SECONDS
    while len(outcomes) < count:
        assert time.monotonic() < deadline, outcomes
        outcomes += uploads.poll()
        time.sleep(0.005)
    return outcomes


def test_an_upload_is_told_with_its_cost(uploads: BackgroundUploads, remote: FakeRemote, tmp_path: Path) -> None:
    _start(uploads, tmp_path, 9)
    assert remote.has_started.acquire(timeout=SECONDS)
    assert uploads.pending == {9}
    assert uploads.poll() == []
    remote.let(1)
    (outcome,) = uploads.finish(timeout_seconds=SECONDS)
    assert (outcome.num_bytes, outcome.sent_bytes, outcome.deleted, outcome.error) == (10, 5, ("step-00000001",), None)
    assert outcome.seconds > 0
    assert uploads.pending == frozenset()
    assert uploads.poll() == []


def test_newest_first_and_what_retention_would_delete_is_skipped(uploads: BackgroundUploads, remote: FakeRemote, tmp_path: Path) -> None:
    _start(uploads, tmp_path, 1)
    assert remote.has_started.acquire(timeout=SECONDS)
    _start(uploads, tmp_path, 2, 3, 4, 5, 6)
    assert uploads.pending == {1, 4, 5, 6}  # 4 is kept for ever; 5 and 6 are the newest
    remote.let(9)
    outcomes = uploads.finish(timeout_seconds=SECONDS)
    assert [name[-1] for name in remote.started] == ["1", "6", "5", "4"]
    assert sorted(_told(outcomes)) == [
        (1, None, False),
        (2, None, True),
        (3, None, True),
        (4, None, False),
        (5, None, False),
        (6, None, False),
    ]


def test_a_failure_is_told_and_tried_again_with_the_next(uploads: BackgroundUploads, remote: FakeRemote, tmp_path: Path) -> None:
    remote.errors["step-00000001"] = CheckpointError("the store is away")
    remote.let(9)
    _start(uploads, tmp_path, 1)
    assert _told(_wait_for(uploads, 1)) == [(1, "the store is away", False)]
    assert uploads.pending == {1}
    _start(uploads, tmp_path, 2)
    assert _told(uploads.finish(timeout_seconds=SECONDS)) == [(2, None, False), (1, None, False)]


def test_finish_tries_failed_ones_once_more_but_not_those_that_are_gone(
    uploads: BackgroundUploads, remote: FakeRemote, tmp_path: Path
) -> None:
    for step in (1, 2):
        remote.errors[f"step-0000000{step}"] = CheckpointError("away")
    _start(uploads, tmp_path, 1)
    assert remote.has_started.acquire(timeout=SECONDS)
    _start(uploads, tmp_path, 2)
    remote.let(2)
    assert _told(_wait_for(uploads, 2)) == [(1, "away", False), (2, "away", False)]
    (tmp_path / "step-00000001").rmdir()
    remote.let(1)
    assert _told(uploads.finish(timeout_seconds=SECONDS)) == [(2, None, False)]
    assert remote.started.count("step-00000001") == 1
    assert uploads.pending == frozenset()


def test_copied_though_old_ones_could_not_be_deleted(uploads: BackgroundUploads, remote: FakeRemote, tmp_path: Path) -> None:
    remote.prune_error = CheckpointError("may not delete")
    remote.let(1)
    _start(uploads, tmp_path, 1)
    (outcome,) = uploads.finish(timeout_seconds=SECONDS)
    assert (outcome.error, outcome.sent_bytes) == ("may not delete", 5)
    assert uploads.pending == frozenset()


def test_a_mistake_of_ours_ends_neither_the_thread_nor_the_run(uploads: BackgroundUploads, remote: FakeRemote, tmp_path: Path) -> None:
    remote.errors["step-00000001"] = KeyError("oops")
    remote.let(9)
    _start(uploads, tmp_path, 1)
    assert _told(_wait_for(uploads, 1)) == [(1, "the checkpoint of step 1 could not be copied: KeyError: 'oops'", False)]
    assert _told(uploads.finish(timeout_seconds=SECONDS)) == [(1, None, False)]


def test_what_is_late_at_the_end_is_told_and_given_up(uploads: BackgroundUploads, remote: FakeRemote, tmp_path: Path) -> None:
    _start(uploads, tmp_path, 1)
    assert remote.has_started.acquire(timeout=SECONDS)
    _start(uploads, tmp_path, 2)
    outcomes = uploads.finish(timeout_seconds=0.01)
    late = "was not finished when the run ended; the same command goes on with it"
    assert _told(outcomes) == [(step, f"the copy of step {step} to s3://bucket/run {late}", False) for step in (1, 2)]
    uploads.close()
    assert "checkpoint-uploads" not in {thread.name for thread in threading.enumerate()}
    assert remote.started == ["step-00000001"]


def test_a_long_wait_at_the_end_is_no_hang(uploads: BackgroundUploads, remote: FakeRemote, tmp_path: Path) -> None:
    _start(uploads, tmp_path, 1)
    shown: list[int] = []

    def show_life() -> None:
        shown.append(1)
        if len(shown) == 2:
            remote.let(1)

    assert _told(uploads.finish(timeout_seconds=SECONDS, show_life=show_life)) == [(1, None, False)]
    assert len(shown) >= 2


def test_with_a_real_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty_store() as proxy:
        address = fresh_address(proxy, monkeypatch=monkeypatch, name="uploads")
        remote = RemoteCheckpoints(address, writer=quick_writer(address))
        uploads = BackgroundUploads(remote, policy=RetentionPolicy(keep=1))
        local = RetentionPolicy(keep=1, pinned=lambda: uploads.pending)
        deleted: list[str] = []
        for step in (1, 2, 3):
            uploads.start(save_as(TENSORS, folder=tmp_path, step=step))
            local.prune(tmp_path, saved=step)
            outcomes = uploads.finish(timeout_seconds=SECONDS)
            assert [outcome.error for outcome in outcomes] == [None]
            deleted.extend(name for outcome in outcomes for name in outcome.deleted)
        uploads.close()
        assert deleted == ["step-00000001", "step-00000002"]
        assert remote.find().steps == (3,)
