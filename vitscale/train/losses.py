"""The ledger of lost samples: durable before they are trained on, shared by the ranks, held against the budget of the run."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from vitscale.checkpoint.durable import create_folder, sync_folder
from vitscale.config import DataError
from vitscale.data.types import LostSample

_SHOWN_SHARDS = 5
_TAIL_BYTES = 1 << 16

Losses = dict[tuple[int, int], LostSample]
"""By view and sample id, of which each pair comes up once in a run."""


class LossLedger:
    """Every sample that the run has lost so far, over all ranks, and what replaced it.

    Each rank writes what it loses to a file of its own at once, so that a replay after a crash makes the same replacements even
    if the shard has been mended by then. `saved` are the losses that the checkpoint knows; `written` those that the files of
    earlier attempts hold beyond it, of steps that are done again: they need not be written once more, but are still to be
    counted and told.
    """

    def __init__(self, path: Path, *, saved: Losses, written: Losses) -> None:
        self._path = path
        self._known = dict(saved)
        self._saved = dict(saved)
        self._offered: dict[int, Losses] = {}
        self._written = saved | written
        self._of_next_batch: list[LostSample] = []
        self._unshared: list[LostSample] = []
        self._is_whole = False

    @property
    def count(self) -> int:
        """Samples lost in the batches done so far, each view of a sample counted by itself."""
        return sum(lost.num_lost for lost in self._known.values())

    def record(self, lost: Sequence[LostSample]) -> None:
        """Keep what this rank lost in a batch that is about to be trained on. Raises `DataError` when it cannot be written."""
        new = [sample for sample in lost if _name(sample) not in self._written]
        if new:
            self._append(new)
            self._written |= first_of_each(new)
        # As it was first written: a replay knows that a sample was lost, the files know why.
        self._of_next_batch += [self._written[_name(sample)] for sample in lost if _name(sample) not in self._known]

    def batch_done(self) -> None:
        """What was recorded so far has been trained on."""
        self._unshared += self._of_next_batch
        self._of_next_batch = []

    def take_unshared(self) -> list[dict[str, Any]]:
        """What this rank has lost in the batches done since the last call, to be sent to all ranks. Plain JSON."""
        mine, self._unshared = self._unshared, []
        return [asdict(sample) for sample in mine]

    def merge(self, entries: Iterable[Mapping[str, Any]]) -> list[LostSample]:
        """Take in what all ranks have sent; gives it back in order, each loss once."""
        named = first_of_each(LostSample(**entry) for entry in entries)
        self._known |= named
        return [named[name] for name in sorted(named)]

    def exceeds(self, *, max_fraction: float, samples: int, epoch_samples: int | None) -> str | None:
        """What to tell the user where more than `max_fraction` of the data is lost: of an epoch or, if more, of the samples
        consumed. After `merge`, every rank decides alike."""
        drawn = max(samples, epoch_samples or 0)
        if self.count <= max_fraction * drawn:
            return None
        shards = sorted({sample.shard for sample in self._known.values()})
        more = f" and {len(shards) - _SHOWN_SHARDS} more" if len(shards) > _SHOWN_SHARDS else ""
        reasons = sorted({sample.reason for sample in self._known.values()})
        return (
            f"{self.count} samples were lost, more than data.max_lost_fraction {max_fraction:g} of {drawn} allows, in"
            f" {', '.join(shards[:_SHOWN_SHARDS])}{more}. One of them: {reasons[0]} Mend the shards (`vitscale-data verify` names all"
            " damage) or raise data.max_lost_fraction, and run the command again; it goes on from the newest checkpoint."
        )

    def forget_unsaved(self) -> None:
        """Leave on disk only what the newest committed checkpoint knows, for a run that the budget stops: no step after it
        is kept, and what the user mends is to count no longer. Rank 0 only."""
        try:
            clear_ledger(self._path.parent)
        except OSError as error:
            raise DataError(f"{self._path.parent}: cannot be removed: {error.strerror}. Remove it before the next start.") from error
        self._is_whole = False
        if self._saved:
            self._append(list(self._saved.values()))

    def save(self, step: int) -> list[dict[str, Any]]:
        """The losses up to the checkpoint of `step`, which is about to be written, for it to keep. Plain JSON."""
        # Ranks that do not commit may hear nothing of a save's end; but that of the one before the newest is the last to be open.
        self._offered = dict([*self._offered.items()][-1:]) | {step: dict(self._known)}
        return [asdict(self._known[name]) for name in sorted(self._known)]

    def save_ended(self, step: int, *, is_committed: bool) -> None:
        """There is a checkpoint of `step` now, or its save has failed and nothing but the files knows its losses."""
        offered = self._offered.pop(step)
        if is_committed:
            self._saved = offered

    def _append(self, lost: Sequence[LostSample]) -> None:
        is_new = not self._path.exists()
        try:
            create_folder(self._path.parent)
            with open(self._path, "ab+") as file:
                if not self._is_whole:
                    _cut_torn_line(file)
                    self._is_whole = True
                file.write(b"".join(json.dumps(asdict(sample)).encode() + b"\n" for sample in lost))
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                sync_folder(self._path.parent)
        except OSError as error:
            self._is_whole = False
            raise DataError(
                f"{self._path}: the ledger of lost samples cannot be written: {error.strerror}. Free space on the run directory's"
                " disk and run the command again; it goes on from the newest checkpoint."
            ) from error


def first_of_each(lost: Iterable[LostSample]) -> Losses:
    """By view and sample id; of several entries the first counts, which was trained on first."""
    named: Losses = {}
    for sample in lost:
        named.setdefault(_name(sample), sample)
    return named


def replacements(losses: Losses) -> Mapping[tuple[int, int], int]:
    """What the loader needs of losses that it may meet again."""
    return {name: lost.replaced_by for name, lost in losses.items() if lost.replaced_by is not None}


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """The entries of every rank's file in `folder`, those of earlier attempts included. Plain JSON. Raises `DataError` for a
    file that cannot be read."""
    entries: list[dict[str, Any]] = []
    try:
        lines = [line for path in _files(folder) for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise DataError(f"{folder}: the ledger of lost samples cannot be read: {error.strerror}. Make it readable.") from error
    for line in lines:
        try:
            entries.append(asdict(LostSample(**json.loads(line))))
        except (ValueError, TypeError):
            continue  # the torn last line of a killed process, whose batch was not trained on
    return entries


def clear_ledger(folder: Path) -> None:
    """Remove every rank's file."""
    for path in _files(folder):
        path.unlink()


def _name(lost: LostSample) -> tuple[int, int]:
    return lost.view, lost.sample_id


def _cut_torn_line(file: BinaryIO) -> None:
    """Drop what a killed process or a full disk left after the last line, or the next entry would be written into it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read()
    file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("rank-*.jsonl"))
