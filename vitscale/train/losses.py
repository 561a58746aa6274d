"""The ledger of lost samples: durable before they are trained on, shared by the ranks, held against the budget of the run."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitscale.config import DataError
from vitscale.data.types import LostSample

_SHOWN_SHARDS = 5

Losses = dict[tuple[int, int], LostSample]
"""By epoch and sample id."""


class LossLedger:
    """Every sample that the run has lost so far, over all ranks, and what replaced it.

    Each rank writes what it loses to a file of its own at once, so that a replay after a crash makes the same replacements even
    if the shard has been mended by then; checkpoints carry the whole ledger, so that they do not need the run directory.
    """

    def __init__(self, path: Path, *, known: Losses) -> None:
        self._path = path
        self._known = dict(known)
        self._written = set(known)
        self._of_next_batch: list[LostSample] = []
        self._unshared: list[LostSample] = []

    @property
    def count(self) -> int:
        """Samples lost so far, each epoch's counted by itself."""
        return sum(lost.num_lost for lost in self._known.values())

    def record(self, lost: Sequence[LostSample]) -> None:
        """Keep what this rank lost in a batch that is about to be trained on. Raises `DataError` when it cannot be written."""
        new = [sample for sample in lost if (sample.epoch, sample.sample_id) not in self._written]
        if not new:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(sample)) + "\n" for sample in new)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f"{self._path}: the ledger of lost samples cannot be written: {error.strerror}. Free space on the run directory's"
                " disk and run the command again; it goes on from the newest checkpoint."
            ) from error
        self._written |= by_name(new).keys()
        self._of_next_batch += new

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
        named = by_name(LostSample(**entry) for entry in entries)
        self._known |= named
        return [named[name] for name in sorted(named)]

    def check(self, *, max_fraction: float, samples: int, num_samples: int | None) -> None:
        """Raise `DataError` when more than `max_fraction` of the data is lost: of an epoch or, if more, of the samples consumed.

        After `merge`, every rank decides alike. What no checkpoint has of the ledger is forgotten then: no step that is kept was
        trained on it, and once the shards are mended it counts no longer.
        """
        drawn = max(samples, num_samples or 0)
        if self.count <= max_fraction * drawn:
            return
        for path in _files(self._path.parent):
            path.unlink(missing_ok=True)
        shards = sorted({sample.shard for sample in self._known.values()})
        more = f" and {len(shards) - _SHOWN_SHARDS} more" if len(shards) > _SHOWN_SHARDS else ""
        reasons = sorted({sample.reason for sample in self._known.values()})
        raise DataError(
            f"{self.count} samples were lost, more than data.max_lost_fraction {max_fraction:g} of {drawn} allows, in"
            f" {', '.join(shards[:_SHOWN_SHARDS])}{more}. One of them: {reasons[0]} Mend the shards (`vitscale-data verify` names all"
            " damage) or raise data.max_lost_fraction, and run the command again; it goes on from the newest checkpoint."
        )

    def to_json(self) -> list[dict[str, Any]]:
        """The whole ledger, for a checkpoint."""
        return [asdict(self._known[name]) for name in sorted(self._known)]


def by_name(lost: Iterable[LostSample]) -> Losses:
    """By epoch and sample id; of several entries the first counts, which was trained on first."""
    named: Losses = {}
    for sample in lost:
        named.setdefault((sample.epoch, sample.sample_id), sample)
    return named


def replacements(losses: Losses) -> Mapping[tuple[int, int], int]:
    """What the loader needs of the ledger. A view that could not be decoded fails again by itself, and alone."""
    return {name: lost.replaced_by for name, lost in losses.items() if lost.replaced_by is not None and not lost.one_view}


def read_ledger(folder: Path, *, saved: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries of a checkpoint and of every rank's file in `folder`, those of earlier attempts included. Plain JSON."""
    entries = [dict(entry) for entry in saved]
    for path in _files(folder):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # the torn last line of a killed process, whose batch was not trained on
    return entries


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("rank-*.jsonl"))
