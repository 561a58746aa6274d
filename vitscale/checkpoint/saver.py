"""Saving all ranks' state beside training, so that a checkpoint exists whole or not at all, whatever dies on the way.

Training stands still while the state is copied to host memory. A thread of each rank writes that rank's part; that all parts
are on disk, the ranks learn from the vote they take after each step anyway, so that no collective runs beside training's
own. Then rank 0's thread commits, and deletes what is no longer kept.
"""

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from vitscale.checkpoint.commit import SaveContent, commit, discard, encode_state, prepare, write_part
from vitscale.checkpoint.durable import disk_errors
from vitscale.checkpoint.fragments import ShardStore
from vitscale.checkpoint.host_copy import HostCopy, live_values, size_in_bytes
from vitscale.checkpoint.layout import list_step_folders, rank_file, save_folder
from vitscale.checkpoint.manifest import FileEntry
from vitscale.checkpoint.writer_thread import WriterThread
from vitscale.config import CheckpointError
from vitscale.dist.agreement import on_main
from vitscale.dist.collectives import gather_json
from vitscale.dist.ranks import current_ranks

_CLOSING_SECONDS = 5.0
_LOOK_SECONDS = 1.0


class Retention(Protocol):
    """Which checkpoints stay. Called on rank 0 only."""

    def make_room(self, folder: Path, *, needed_bytes: int) -> list[Path]:
        """Delete what may go until `needed_bytes` fit on the disk of `folder`; what was deleted. Raises `CheckpointError` when
        they do not fit even so."""

    def prune(self, folder: Path, *, saved: int) -> list[Path]:
        """Delete what goes now that the checkpoint of step `saved` is committed; what was deleted."""


@dataclass(frozen=True, kw_only=True)
class SaveOutcome:
    """What became of a save.

    `error` says in one line why there is no checkpoint of this step, and which rank's file it was. `stall_seconds` is how long
    training stood still for it, waiting for the save before included, `seconds` the time from its begin to its end. `deleted`
    names the checkpoints that went, `deletion_error` says why others could not.
    """

    step: int
    error: str | None
    stall_seconds: float
    seconds: float
    num_bytes: int
    deleted: tuple[str, ...] = ()
    deletion_error: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """Where a save goes, and what was deleted to make room for it."""

    partial: Path
    deleted: tuple[str, ...]


@dataclass(kw_only=True)
class _Save:
    """A save in flight. `part` is this rank's file; `outcome`, on rank 0 only, is there once all ranks' parts are gathered."""

    number: int
    begun: float
    content: SaveContent
    partial: Path
    deleted: tuple[str, ...]
    part: "Future[FileEntry]"
    stall_seconds: float = 0.0
    is_gathered: bool = False
    outcome: "Future[SaveOutcome] | None" = None
    is_told: bool = False


class CheckpointSaver:
    """Saves the state of `store` into the checkpoints directory `folder`, one save at a time.

    `in_background` keeps a copy of this rank's state in host memory and returns to training as soon as that is filled; else
    `begin` returns when the checkpoint is committed, and no copy is made. `check_owner` raises `CheckpointError` when the run
    directory has another owner by now. Without `retention` nothing is ever deleted. A save that fails leaves the older
    checkpoints as they were and is told in its `SaveOutcome`; only our own mistakes raise. While training waits for this rank's part
    to be written, `show_life` is called whenever more of it has been.
    """

    def __init__(
        self,
        store: ShardStore,
        *,
        folder: Path,
        in_background: bool,
        check_owner: Callable[[], None],
        retention: Retention | None,
        show_life: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._folder = folder
        self._check_owner = check_owner
        self._retention = retention
        self._show_life = show_life
        self._host_copy = HostCopy(store.owned()) if in_background else None
        self._writer = WriterThread(name="checkpoint writer")
        self._in_flight: _Save | None = None
        self._num_begun = 0
        self._needed_bytes: int | None = None

    @property
    def parts_written(self) -> int:
        """How many saves this rank has written its part of, or failed to, since the start."""
        save = self._in_flight
        return self._num_begun - (save is not None and not save.part.done())

    def begin(self, *, step: int, state: dict[str, Any], config_text: str) -> list[SaveOutcome]:
        """Start a save of what the store holds now; the outcomes of the saves that ended meanwhile, equal on all ranks.

        Collective. Waits for a save still in flight. `state` is plain JSON; rank 0's copy counts.
        """
        begun = time.perf_counter()
        ended = self._settle()
        content = SaveContent(
            step=step,
            optimizer_steps=self._store.optimizer_steps(),
            zero_stage=self._store.zero_stage,
            state_text=encode_state(state) if current_ranks().is_main else "",
            config_text=config_text,
        )
        try:
            prepared = self._prepare(step)
        except CheckpointError as error:
            return [*ended, self._failed(step, error, begun=begun)]
        self._in_flight = self._start(content, begun=begun, prepared=prepared)
        if self._host_copy is None:
            ended += self._settle()
        return ended

    def poll(self, *, parts_written: int) -> list[SaveOutcome]:
        """What has ended since the last call; on ranks other than 0 always nothing.

        All ranks call this alike, with the smallest `parts_written` of them. Waits for nothing but the other ranks' call, and for
        that once a save.
        """
        save = self._in_flight
        if save is None:
            return []
        if not save.is_gathered and parts_written >= save.number:
            started = time.perf_counter()
            self._gather(save)
            save.stall_seconds += time.perf_counter() - started
        if save.outcome is None or save.is_told or not save.outcome.done():
            return []
        return [self._told(save)]

    def finish(self) -> list[SaveOutcome]:
        """Wait for the save in flight; its outcome, equal on all ranks, unless `poll` has told it. Collective."""
        return self._settle()

    def close(self) -> None:
        """Stop the thread. A save that was not finished is given up, and its folder is left for the next start to remove."""
        if self._writer.close(timeout_s=_CLOSING_SECONDS) and self._host_copy is not None:
            self._host_copy.close()
            self._host_copy = None

    def _prepare(self, step: int) -> _Prepared:
        """See that the disk has room and make the partial folder, on rank 0."""
        if self._needed_bytes is None:
            self._needed_bytes = sum(gather_json(size_in_bytes(self._store.owned())))
        needed_bytes = self._needed_bytes

        def make() -> dict[str, Any]:
            self._check_owner()
            for entry in list_step_folders(self._folder):
                if entry.role == "partial" and entry.step == step:
                    discard(entry.path)  # what a process that died, or was shut out, in a save of this step has left
            deleted: list[Path] = []
            if self._retention is not None:
                with disk_errors():
                    deleted = self._retention.make_room(self._folder, needed_bytes=needed_bytes)
            partial = save_folder(self._folder, step=step)
            prepare(partial)
            return {"partial": partial.name, "deleted": [path.name for path in deleted]}

        made = on_main(make)
        return _Prepared(partial=self._folder / made["partial"], deleted=tuple(made["deleted"]))

    def _start(self, content: SaveContent, *, begun: float, prepared: _Prepared) -> _Save:
        owned = self._store.owned()
        fragments = live_values(owned) if self._host_copy is None else self._host_copy.take(owned)
        write = partial(write_part, prepared.partial, rank=current_ranks().rank, fragments=fragments, given_up=self._writer.is_closing)
        self._num_begun += 1
        return _Save(
            number=self._num_begun,
            begun=begun,
            content=content,
            partial=prepared.partial,
            deleted=prepared.deleted,
            part=self._writer.submit(write),
            stall_seconds=time.perf_counter() - begun,
        )

    def _settle(self) -> list[SaveOutcome]:
        """Wait until nothing is in flight. Collective where something is, which all ranks know alike."""
        save = self._in_flight
        if save is None:
            return []
        started = time.perf_counter()
        if not save.is_gathered:
            self._gather(save)

        def wait_for_outcome() -> list[dict[str, Any]]:
            assert save.outcome is not None
            save.outcome.exception()
            save.stall_seconds += time.perf_counter() - started
            return [] if save.is_told else [asdict(self._told(save))]

        ended = on_main(wait_for_outcome)
        self._in_flight = None
        return [SaveOutcome(**outcome | {"deleted": tuple(outcome["deleted"])}) for outcome in ended]

    def _gather(self, save: _Save) -> None:
        """Tell all ranks of each other's parts, and let rank 0 end the save. Collective; waits for this rank's part."""
        self._wait_for_part(save)
        error = save.part.exception()
        mine = {"entry": save.part.result().model_dump()} if error is None else {"error": str(error)}
        parts = gather_json(mine)
        save.is_gathered = True
        if error is not None and not isinstance(error, CheckpointError):
            raise error
        if current_ranks().is_main:
            save.outcome = self._writer.submit(partial(self._conclude, save, parts))

    def _wait_for_part(self, save: _Save) -> None:
        path = save.partial / rank_file(current_ranks().rank)
        size = size_before = -1
        while wait([save.part], timeout=_LOOK_SECONDS).not_done:
            with contextlib.suppress(OSError):  # not there yet, or any more
                size = path.stat().st_size
            if size != size_before:
                self._show_life()
            size_before = size

    def _conclude(self, save: _Save, parts: list[dict[str, Any]]) -> SaveOutcome:
        """Commit the save where every rank has written its part, else remove it. In rank 0's thread."""
        try:
            failed = next((part["error"] for part in parts if "error" in part), None)
            if failed is not None:
                raise CheckpointError(failed)
            entries = [FileEntry(**part["entry"]) for part in parts]
            size = commit(save.partial, content=save.content, parts=entries, check_owner=self._check_owner)
        except CheckpointError as error:
            discard(save.partial)
            return self._failed(save.content.step, error, begun=save.begun, deleted=save.deleted)
        deleted, deletion_error = self._prune(save.content.step)
        return SaveOutcome(
            step=save.content.step,
            error=None,
            stall_seconds=save.stall_seconds,
            seconds=time.perf_counter() - save.begun,
            num_bytes=size,
            deleted=save.deleted + deleted,
            deletion_error=deletion_error,
        )

    def _prune(self, saved: int) -> tuple[tuple[str, ...], str | None]:
        """What was deleted after a commit, and why something else could not be: the checkpoint is committed all the same."""
        if self._retention is None:
            return (), None
        try:
            return tuple(path.name for path in self._retention.prune(self._folder, saved=saved)), None
        except (OSError, CheckpointError) as error:
            return (), f"older checkpoints could not be deleted: {error}"

    def _failed(self, step: int, error: CheckpointError, *, begun: float, deleted: tuple[str, ...] = ()) -> SaveOutcome:
        seconds = time.perf_counter() - begun
        message = (
            f"the checkpoint of step {step} could not be saved: {error}. Older checkpoints are untouched;"
            f" see that {self._folder} is writable and has space"
        )
        return SaveOutcome(step=step, error=message, stall_seconds=seconds, seconds=seconds, num_bytes=0, deleted=deleted)

    @staticmethod
    def _told(save: _Save) -> SaveOutcome:
        """The outcome with what training has stood still for it up to now. Raises what was a mistake of ours."""
        assert save.outcome is not None
        save.is_told = True
        return SaveOutcome(**asdict(save.outcome.result()) | {"stall_seconds": save.stall_seconds})
