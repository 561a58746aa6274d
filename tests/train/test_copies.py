"""Copies of a run: where they lie, what the ledger says of them, and nothing at all without the setting."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.simulation import make_tensors, save_as
from tests.checkpoint.store import faulty_store, fresh_address, quick_writer
from tests.data.write_faults import RefusedWrites
from tests.train.tiny_run import tiny_config
from vitscale.checkpoint.remote import RemoteCheckpoints
from vitscale.checkpoint.remote_uploads import UploadOutcome
from vitscale.config import ConfigError, StopRequested
from vitscale.train.copies import STOP_SECONDS, Copies, open_remote

TENSORS = make_tensors(seed=1, shapes={"a": (4,)}, kinds=("weight",))


class Ledger:
    """Keeps events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, str, dict[str, Any]]] = []

    def __call__(self, kind: str, *, step: int, message: str, **details: object) -> None:
        self.events.append((kind, step, message, details))


def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "checkpoint.upload_to=s3://bucket/all/")
    remote = open_remote(config, check_owner=lambda: None)
    assert remote is not None
    assert remote.root == f"s3://bucket/all/{config.name}"
    assert open_remote(tiny_config(tmp_path), check_owner=lambda: None) is None
    with pytest.raises(ConfigError, match=r"checkpoint\.upload_to"):
        open_remote(tiny_config(tmp_path, "checkpoint.upload_to=/mnt/copies"), check_owner=lambda: None)


def test_without_the_setting_nothing_happens(tmp_path: Path) -> None:
    ledger = Ledger()
    copies = Copies(None, config=tiny_config(tmp_path), scores=dict, event=ledger)
    copies.start(tmp_path)
    copies.tell()
    copies.finish(timeout_seconds=None)
    with copies:
        pass
    copies.close()
    assert (ledger.events, copies.pending) == ([], frozenset())


def test_the_ledger_tells_of_copies_and_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger()
    with faulty_store() as proxy:
        address = fresh_address(proxy, monkeypatch=monkeypatch, name="ledger")
        remote = RemoteCheckpoints(address, writer=quick_writer(address))
        config = tiny_config(tmp_path, "checkpoint.keep=1", "checkpoint.keep_best={metric: eval/test/top1}")
        copies = Copies(remote, config=config, scores=lambda: {1: 0.5}, event=ledger)
        for step in (1, 2, 3):
            copies.start(save_as(TENSORS, folder=tmp_path / "checkpoints", step=step))
            copies.finish(timeout_seconds=20)
        assert [(kind, step, details["deleted"]) for kind, step, _, details in ledger.events] == [
            ("upload", 1, []),
            ("upload", 2, []),
            ("upload", 3, ["step-00000002"]),  # the first is the best
        ]
        assert "copied checkpoint of step 1 in" in ledger.events[0][2]
        proxy.refuse([RefusedWrites(403, "AccessDenied")] * 10)
        copies.start(save_as(TENSORS, folder=tmp_path / "checkpoints", step=4))
        while len(ledger.events) == 3:
            copies.tell()
        copies.close()
    kind, step, message, details = ledger.events[3]
    assert (kind, step, details["failed_uploads"]) == ("upload_failed", 4, 1)
    assert "may write and delete here" in message
    assert copies.pending == {4}


def test_what_was_skipped_is_told(tmp_path: Path) -> None:
    ledger = Ledger()
    copies = Copies(None, config=tiny_config(tmp_path), scores=dict, event=ledger)
    copies._tell(UploadOutcome(step=5, is_skipped=True))
    assert ledger.events == [("upload_skipped", 5, "step 5 was not copied: newer ones came first", {})]


def test_what_a_killed_save_left_under_another_name_is_resumed_from_and_not_copied(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "checkpoint.upload_to=s3://bucket/all")
    copies = Copies(open_remote(config, check_owner=lambda: None), config=config, scores=dict, event=Ledger())
    copies.start(tmp_path / "checkpoints" / "step-00000002.replaced")
    assert copies.pending == frozenset()
    copies.close()


@pytest.mark.parametrize(
    ("error", "timeout_seconds"), [(None, None), (StopRequested, STOP_SECONDS), (KeyError, STOP_SECONDS), (KeyboardInterrupt, 0.0)]
)
def test_the_end_of_a_run_is_waited_for_and_a_stop_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None, timeout_seconds: float | None
) -> None:
    done: list[object] = []
    monkeypatch.setattr(Copies, "finish", lambda _, *, timeout_seconds: done.append(timeout_seconds))
    monkeypatch.setattr(Copies, "close", lambda _: done.append("closed"))
    with (
        contextlib.suppress(StopRequested, KeyError, KeyboardInterrupt),
        Copies(None, config=tiny_config(tmp_path), scores=dict, event=Ledger()),
    ):
        if error is not None:
            raise error
    assert done == [timeout_seconds, "closed"]
