"""Uploads behind a run's back: one thread that copies committed checkpoints to the object store while training goes on."""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vitscale.checkpoint.layout import parse_step_folder
from vitscale.checkpoint.remote import RemoteCheckpoints, UploadCancelledError
from vitscale.checkpoint.retention import RetentionPolicy
from vitscale.config import CheckpointError

_LOG = logging.getLogger(__name__)
_CLOSE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class UploadOutcome:
    """What became of the upload of one checkpoint. Training goes on whatever it is.

    `error` says what failed (also where the copy is whole and old ones could not be deleted). `is_skipped`: newer ones came
    first, and retention would delete this one anyway. `deleted` are names of remote folders.
    """

    step: int
    error: str | None = None
    is_skipped: bool = False
    seconds: float = 0.0
    num_bytes: int = 0
    sent_bytes: int = 0
    deleted: tuple[str, ...] = ()


class BackgroundUploads:
    """Copies checkpoints to `remote`, newest first, and applies `policy` there. On the one rank that commits checkpoints.

    A failed upload is tried again with the next one. Of those that wait, the ones that `policy` would not keep are skipped,
    so that a store slower than the saves is not chased for ever. All methods return at once but `finish` and `close`.
    """

    def __init__(self, remote: RemoteCheckpoints, *, policy: RetentionPolicy) -> None:
        self._remote = remote
        self._policy = policy
        self._changed = threading.Condition()
        self._waiting: dict[int, Path] = {}
        self._failed: dict[int, Path] = {}
        self._current: int | None = None
        self._outcomes: list[UploadOutcome] = []
        self._is_closing = False
        # A daemon: a store that does not answer must not hold up the end of the process.
        self._thread = threading.Thread(target=self._work, name="checkpoint-uploads", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> frozenset[int]:
        """Steps whose local folder is still needed: to be given to the local policy as `pinned`."""
        with self._changed:
            return frozenset((*self._waiting, *self._failed, *(() if self._current is None else (self._current,))))

    def start(self, path: Path) -> None:
        """Upload the committed checkpoint at `path` next."""
        entry = parse_step_folder(path)
        assert entry is not None, path
        assert entry.role == "committed", path
        with self._changed:
            assert not self._is_closing, "closed"
            self._retry_failed()
            self._waiting[entry.step] = path
            for step in self._policy.outdated(list(self._waiting)):
                del self._waiting[step]
                self._outcomes.append(UploadOutcome(step=step, is_skipped=True))
            self._changed.notify_all()

    def poll(self) -> list[UploadOutcome]:
        """What was finished since the last call."""
        with self._changed:
            outcomes, self._outcomes = self._outcomes, []
            return outcomes

    def finish(self, *, timeout_seconds: float | None = None, show_life: Callable[[], None] = lambda: None) -> list[UploadOutcome]:
        """Wait until nothing is left to upload, failed ones tried once more, and return the outcomes since the last call.

        What is not done after `timeout_seconds` is an outcome with an error; the next start of the run goes on with it. `show_life` is
        called every second: a store that does not answer is given up by the upload itself.
        """
        with self._changed:
            self._retry_failed()
            self._changed.notify_all()
            deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
            while (left_seconds := deadline - time.monotonic()) > 0:
                if self._changed.wait_for(lambda: not self._waiting and self._current is None, timeout=min(1.0, left_seconds)):
                    break
                show_life()
            left = sorted({*self._waiting, *(() if self._current is None else (self._current,))})
            late = [UploadOutcome(step=step, error=_late(step, root=self._remote.root)) for step in left]
        return [*self.poll(), *late]

    def close(self) -> None:
        """Stop, giving up what is under way; a file that was being sent is not to be seen."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout=_CLOSE_SECONDS)

    def _retry_failed(self) -> None:
        # One that somebody deleted in the meantime is nothing to wait for.
        self._waiting.update({step: path for step, path in self._failed.items() if path.is_dir()})
        self._failed.clear()

    def _work(self) -> None:
        while (task := self._next()) is not None:
            step, path = task
            outcome = self._upload(step, path)
            with self._changed:
                self._current = None
                if outcome is None:  # closing
                    return
                if outcome.error is not None and outcome.num_bytes == 0:
                    self._failed[step] = path
                self._outcomes.append(outcome)
                self._changed.notify_all()

    def _next(self) -> tuple[int, Path] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            if self._is_closing:
                return None
            self._current = max(self._waiting)
            return self._current, self._waiting.pop(self._current)

    def _upload(self, step: int, path: Path) -> UploadOutcome | None:
        started = time.monotonic()
        outcome = UploadOutcome(step=step)
        try:
            done = self._remote.upload(path, is_cancelled=lambda: self._is_closing)
            outcome = replace(outcome, num_bytes=done.num_bytes, sent_bytes=done.sent_bytes)
            outcome = replace(outcome, deleted=tuple(self._remote.prune(self._policy, saved=step, pending=self.pending)))
        except UploadCancelledError:
            return None
        except CheckpointError as error:
            outcome = replace(outcome, error=str(error))
        except Exception as error:
            # A mistake of ours must not end in uploads that silently stop.
            _LOG.exception("the upload of step %d failed", step)
            outcome = replace(outcome, error=f"the checkpoint of step {step} could not be copied: {type(error).__name__}: {error}")
        return replace(outcome, seconds=time.monotonic() - started)


def _late(step: int, *, root: str) -> str:
    return f"the copy of step {step} to {root} was not finished when the run ended; the same command goes on with it"
