"""Which checkpoints stay, which are deleted, and how room is made for the next one."""

import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from vitscale.checkpoint.config import CheckpointConfig, KeepBestConfig
from vitscale.checkpoint.discover import why_unusable
from vitscale.checkpoint.durable import disk_errors
from vitscale.checkpoint.layout import StepFolder, list_step_folders, step_folder
from vitscale.config import CheckpointError

_MARGIN_SHARE = 0.05
"""Of a save, that must stay free beside it: file systems need room of their own, and logs go on growing."""
_MARGIN_BYTES = 64 << 20
_BLOCK_BYTES = 512  # the unit of st_blocks

Scores = Callable[[], Mapping[int, float]]
"""The figure that `keep_best` names, by the step it was measured at."""


def reasons_to_keep(
    steps: Collection[int],
    *,
    keep: int,
    keep_every_steps: int | None = None,
    keep_best: KeepBestConfig | None = None,
    scores: Mapping[int, float] | None = None,
) -> dict[int, tuple[str, ...]]:
    """Why each step stays: as one of the `keep` newest, for ever, or as one of the best by `scores`; empty: it goes.

    `keep` is at least 1, so the newest always stays. A step without a figure, or with one that is not a number, is never
    among the best; of equal figures the newest counts.
    """
    assert keep >= 1, keep
    newest = set(sorted(set(steps))[-keep:])
    best = _best_steps(steps, keep_best=keep_best, scores=scores or {})
    return {
        step: tuple(
            reason
            for reason, holds in (
                (f"one of the {keep} newest" if keep > 1 else "the newest", step in newest),
                (f"every {keep_every_steps} steps", bool(keep_every_steps) and step % (keep_every_steps or 1) == 0),
                (f"best {keep_best.metric}" if keep_best else "", step in best),
            )
            if holds
        )
        for step in sorted(set(steps))
    }


def read_scores(metrics: Path, *, metric: str) -> dict[int, float]:
    """The newest value of `metric` at each step in a run's metrics.jsonl. A torn last line, or no file, is no value."""
    scores: dict[int, float] = {}
    try:
        lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return scores
    except OSError as error:
        raise CheckpointError(f"{metrics}: cannot be read ({error.strerror}), so the best checkpoints are not known") from None
    for line in lines:
        if metric not in line:  # most lines are of steps: decoding them would take seconds in a long run
            continue
        try:
            record = json.loads(line)
            scores[int(record["step"])] = float(record[metric])
        except (ValueError, KeyError, TypeError):
            continue
    return scores


class RetentionPolicy:
    """Keeps the `keep` newest checkpoints, every n-th for ever and the best; for the one process that writes to the folder.

    `scores` is asked whenever the best are needed; `pinned` gives steps that must not go now (those being uploaded).
    `resumed_from` is the step that the run goes on from: whatever is newer than it, or than what was committed since,
    was passed over, counts for nothing and stays for inspection. Methods may be called from any one thread at a time.
    """

    def __init__(
        self,
        *,
        keep: int,
        keep_every_steps: int | None = None,
        keep_best: KeepBestConfig | None = None,
        scores: Scores = dict,
        pinned: Callable[[], Collection[int]] = tuple,
        resumed_from: int | None = None,
    ) -> None:
        assert keep >= 1, keep
        self._keep = keep
        self._keep_every_steps = keep_every_steps
        self._keep_best = keep_best
        self._scores = scores
        self._pinned = pinned
        self._newest_good = resumed_from

    @classmethod
    def from_config(
        cls,
        config: CheckpointConfig,
        *,
        scores: Scores = dict,
        pinned: Callable[[], Collection[int]] = tuple,
        resumed_from: int | None = None,
    ) -> Self:
        """What the configuration asks for."""
        return cls(
            keep=config.keep,
            keep_every_steps=config.keep_every_steps,
            keep_best=config.keep_best,
            scores=scores,
            pinned=pinned,
            resumed_from=resumed_from,
        )

    def reasons(self, steps: Collection[int]) -> dict[int, tuple[str, ...]]:
        """Why each of these steps stays; empty: it goes."""
        return reasons_to_keep(
            steps,
            keep=self._keep,
            keep_every_steps=self._keep_every_steps,
            keep_best=self._keep_best,
            scores=self._scores() if self._keep_best else None,
        )

    def outdated(self, steps: Collection[int]) -> list[int]:
        """Those of these steps that go, oldest first. Never the newest, nor a pinned one."""
        pinned = self._pinned()
        return [step for step, reasons in self.reasons(steps).items() if not reasons and step not in pinned]

    def prune(self, folder: Path, *, saved: int) -> list[Path]:
        """Delete what need not stay in the checkpoints directory `folder`, now that `saved` is committed; return what went.

        Wholeness is judged by sizes. Damaged folders count for nothing and go once they are older than the `keep` newest;
        leftovers of unfinished saves go once a newer or equal step is committed. Raises `CheckpointError` when the disk
        refuses; what it deleted before stays deleted.
        """
        self._newest_good = saved
        doomed = self.doomed(folder, saved=saved)
        with disk_errors():
            for entry in doomed:
                _delete(entry)
        return [entry.path for entry in doomed]

    def doomed(self, folder: Path, *, saved: int) -> list[StepFolder]:
        """What `prune` would delete, oldest first."""
        entries = list_step_folders(folder)
        whole = _whole_steps(entries, newest=saved)
        if not whole:
            return []
        outdated = set(self.outdated(whole))
        oldest_new = min(sorted(whole)[-self._keep :])
        return [entry for entry in reversed(entries) if _is_doomed(entry, whole=whole, outdated=outdated, oldest_new=oldest_new)]

    def make_room(self, folder: Path, *, needed_bytes: int) -> list[Path]:
        """See that a save of `needed_bytes` fits on the disk of `folder`, before anything of it is written; return what went.

        Where it does not fit, the first to go are leftovers of unfinished saves and whatever retention would delete after the
        save, and then, oldest first and as far as needed, those of the `keep` newest that nothing else keeps: fewer good
        checkpoints are better than none that is new. What is kept for ever, the best, pinned ones, and the newest that is
        known to be whole are never touched. Raises `CheckpointError`, with nothing deleted, when all that is not enough.
        """
        with disk_errors():
            wanted = needed_bytes + max(int(needed_bytes * _MARGIN_SHARE), min(_MARGIN_BYTES, needed_bytes))
            free = free_bytes(folder)
            if free >= wanted:
                return []
            doomed: list[StepFolder] = []
            reclaimed = 0
            for entry in self._expendable(folder):
                if free + reclaimed >= wanted:
                    break
                doomed.append(entry)
                reclaimed += _allocated_bytes(entry.path)
            if free + reclaimed < wanted:
                raise CheckpointError(
                    f"{folder}: the next checkpoint needs {format_bytes(wanted)} (with a margin) and {format_bytes(free)} are free there;"
                    f" deleting what may go ({len(doomed)} folders, {format_bytes(reclaimed)}) is not enough, so nothing was deleted or"
                    " written. Free space on that disk, or lower checkpoint.keep, keep_every_steps or keep_best.count"
                )
            for entry in doomed:
                _delete(entry)
            return [entry.path for entry in doomed]

    def _expendable(self, folder: Path) -> Iterator[StepFolder]:
        """What may go to make room, in the order in which it goes."""
        entries = list_step_folders(folder)
        # No save is under way when room is made for one, so each of these is what a killed process left.
        yield from (entry for entry in reversed(entries) if entry.role == "partial")
        if self._newest_good is None:
            return
        pinned = {self._newest_good, *self._pinned()}
        whole = _whole_steps(entries, newest=self._newest_good)
        committed = [entry for entry in reversed(entries) if entry.role == "committed" and entry.step in whole - pinned]
        # As it will be once the next step is committed, whichever that is.
        steps = {*whole, self._newest_good, self._newest_good + 1}
        reasons, as_newest = self.reasons(steps), reasons_to_keep(steps, keep=self._keep)
        yield from (entry for entry in committed if not reasons[entry.step])
        yield from (entry for entry in committed if reasons[entry.step] and reasons[entry.step] == as_newest[entry.step])


def _best_steps(steps: Collection[int], *, keep_best: KeepBestConfig | None, scores: Mapping[int, float]) -> set[int]:
    if keep_best is None:
        return set()
    sign = 1 if keep_best.mode == "max" else -1
    measured = [step for step in set(steps) if math.isfinite(scores.get(step, math.nan))]
    return set(sorted(measured, key=lambda step: (sign * scores[step], step))[-keep_best.count :])


def _whole_steps(entries: Iterable[StepFolder], *, newest: int) -> set[int]:
    committed = (entry for entry in entries if entry.role == "committed" and entry.step <= newest)
    return {entry.step for entry in committed if why_unusable(entry) is None}


def _is_doomed(entry: StepFolder, *, whole: Collection[int], outdated: Collection[int], oldest_new: int) -> bool:
    if entry.role == "partial":
        return entry.step <= max(whole)
    if entry.role == "committed" and entry.step in whole:
        return entry.step in outdated
    return entry.step < oldest_new


def _delete(entry: StepFolder) -> None:
    path = entry.path
    if entry.role == "committed":
        # Under the name of an unfinished save first: whoever looks while it is being deleted does not take it for damaged.
        path = step_folder(entry.path.parent, step=entry.step, role="partial")
        shutil.rmtree(path, ignore_errors=True)
        os.rename(entry.path, path)
    shutil.rmtree(path)


def free_bytes(folder: Path) -> int:
    """What is free on the disk that `folder` lies on, or will."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _allocated_bytes(folder: Path) -> int:
    """What deleting `folder` gives back."""
    return sum(path.lstat().st_blocks * _BLOCK_BYTES for path in folder.rglob("*"))


def format_bytes(num_bytes: int) -> str:
    """For messages."""
    return f"{num_bytes:,} bytes ({num_bytes / 2**30:.2f} GiB)"
