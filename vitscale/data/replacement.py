"""What is trained on in place of a lost sample: a choice that is a function of the seed and the sample alone."""

import bisect
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from vitscale.config import DataError
from vitscale.data.lanes import SampleOrder, SampleScanner, runs_of
from vitscale.data.order import Window
from vitscale.data.types import LostSample, RawSample, SampleFields, SampleTransform, UnreadableSampleError
from vitscale.dist.seeding import CounterRng, counter_key, mix_array

_MOST_WINDOWS = 8
_KEPT_RUNS = 4
_MOST_KNOWN_LOST = 1 << 16

Replacements = Mapping[tuple[int, int], int]
"""(view, sample id) of samples that were replaced before to the sample id taken instead."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sample of a batch: as read and as transformed. `lost` tells in whose place it stands, if it does."""

    sample: RawSample
    fields: SampleFields
    lost: LostSample | None = None


class RowMaker:
    """Transforms samples, and finds another for each that is lost or cannot be decoded.

    The replacement is looked for in the window of the lost sample, in an order keyed by (seed, epoch, sample id), then in the
    windows that follow in its lane: all of it known to any reader, so the choice does not depend on how many there are, and no
    two of them have to speak. For the same reason a candidate counts as readable only if it can be read as training reads it,
    in one piece with its neighbours in the window: some samples of a shard that was cut short could be had one by one, and
    which of them a reader knows to be lost would depend on what it has come across. A sample that was replaced before is
    replaced as it was then, even if it can be read by now: a replay makes the same batches. For one thread; `reader` is used by
    nobody else.
    """

    def __init__(self, reader: SampleScanner, *, order: SampleOrder, seed: int, replaced_before: Replacements) -> None:
        self._reader = reader
        self._order = order
        self._seed = seed
        self._replaced_before = replaced_before
        self._runs: OrderedDict[range, dict[int, RawSample]] = OrderedDict()
        self._known_lost: set[tuple[range, int]] = set()

    def row(self, sample: RawSample | LostSample, *, transform: SampleTransform, window: Callable[[], Window]) -> Row:
        """The batch row of a sample; `window` tells where it comes from. Raises `DataError` when nothing can take its place,
        and what the transform raises about the data set as a whole."""
        if isinstance(sample, RawSample) and (sample.view, sample.sample_id) not in self._replaced_before:
            try:
                return Row(sample=sample, fields=self._fields(sample, transform=transform, drawn_for=sample.sample_id))
            except UnreadableSampleError as error:
                sample = _lost(sample, reason=str(error))
        lost = sample if isinstance(sample, LostSample) else _lost(sample, reason="replaced again, as it was before the run was resumed")
        return self._replacement(lost, transform=transform, window=window())

    def _replacement(self, lost: LostSample, *, transform: SampleTransform, window: Window) -> Row:
        for found in self._candidates(lost, window=window):
            sample = replace(found, epoch=lost.epoch, view=lost.view)
            # Drawn for the lost sample: the one in its place is seen in its own place too, and not twice alike.
            with contextlib.suppress(UnreadableSampleError):
                fields = self._fields(sample, transform=transform, drawn_for=lost.sample_id)
                return Row(sample=sample, fields=fields, lost=replace(lost, replaced_by=sample.sample_id))
        raise DataError(
            f"{lost.reason} No readable sample was found to take its place in the {_MOST_WINDOWS} windows of its lane from there on."
        )

    def _candidates(self, lost: LostSample, *, window: Window) -> Iterator[RawSample]:
        """The readable samples that may stand for the lost one, the best first."""
        recorded = self._replaced_before.get((lost.view, lost.sample_id))
        if recorded is not None:
            yield from _readable(self._reader.scan(recorded, recorded + 1, epoch=lost.epoch))
        key = np.uint64(counter_key(self._seed, lost.epoch, "replacement", lost.sample_id))
        for _ in range(_MOST_WINDOWS):
            ids = self._order.window_ids(window)
            runs = runs_of(ids)
            ids = np.sort(ids)
            for sample_id in ids[np.argsort(mix_array(ids.astype(np.uint64) ^ key), kind="stable")].tolist():
                run = runs[bisect.bisect_right(runs, sample_id, key=lambda run: run.start) - 1]
                found = self._read(sample_id, run=run) if sample_id != lost.sample_id else None
                if found is not None:
                    yield found
            window = self._order.window_after(window)

    def _read(self, sample_id: int, *, run: range) -> RawSample | None:
        """A sample as reading its whole run gives it; None where that loses it. A run that is known to lose it is not read again."""
        if (run, sample_id) in self._known_lost:
            return None
        samples = self._runs.pop(run, None)
        if samples is None:
            samples = {sample.sample_id: sample for sample in _readable(self._reader.scan(run.start, run.stop, epoch=0))}
            if len(self._known_lost) > _MOST_KNOWN_LOST:
                self._known_lost.clear()
            self._known_lost |= {(run, missing) for missing in run if missing not in samples}
        self._runs[run] = samples
        if len(self._runs) > _KEPT_RUNS:
            self._runs.popitem(last=False)
        return samples.get(sample_id)

    def _fields(self, sample: RawSample, *, transform: SampleTransform, drawn_for: int) -> SampleFields:
        return transform(sample, CounterRng(self._seed, sample.view, drawn_for, "transform"))


def _readable(samples: Iterable[RawSample | LostSample]) -> Iterator[RawSample]:
    return (sample for sample in samples if isinstance(sample, RawSample))


def _lost(sample: RawSample, *, reason: str) -> LostSample:
    return LostSample(sample_id=sample.sample_id, epoch=sample.epoch, view=sample.view, shard=sample.shard, reason=reason)
