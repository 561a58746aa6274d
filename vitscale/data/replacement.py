"""What is trained on in place of a lost sample: a choice that is a function of the seed and the sample alone."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from vitscale.config import DataError
from vitscale.data.lanes import SampleOrder, SampleScanner
from vitscale.data.order import Window
from vitscale.data.types import LostSample, RawSample, SampleFields, SampleTransform, UnreadableSampleError
from vitscale.dist.seeding import CounterRng, counter_key, mix_array

_MOST_TRIES = 4096

Ledger = Mapping[tuple[int, int], int]
"""(epoch, sample id) of every sample that was replaced so far to the sample id taken instead."""


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
    two of them have to speak. A sample that the ledger names is replaced as it was then, even if it can be read by now: a
    replay makes the same batches. For one thread; `reader` is used by nobody else.
    """

    def __init__(self, reader: SampleScanner, *, order: SampleOrder, seed: int, ledger: Ledger) -> None:
        self._reader = reader
        self._order = order
        self._seed = seed
        self._replaced = dict(ledger)
        self._known_lost: set[tuple[int, int]] = set()

    def row(self, sample: RawSample | LostSample, *, transform: SampleTransform, window: Callable[[], Window]) -> Row:
        """The batch row of a sample; `window` tells where it comes from. Raises `DataError` when nothing can take its place,
        and what the transform raises about the data set as a whole."""
        name = (sample.epoch, sample.sample_id)
        if isinstance(sample, RawSample) and name not in self._replaced:
            try:
                return Row(sample=sample, fields=self._fields(sample, transform=transform, drawn_for=sample.sample_id))
            except UnreadableSampleError as error:
                sample = _lost(sample, reason=str(error))
        lost = sample if isinstance(sample, LostSample) else _lost(sample, reason="replaced again, as it was before the run was resumed")
        self._known_lost.add(name)
        return self._replacement(lost, transform=transform, window=window())

    def _replacement(self, lost: LostSample, *, transform: SampleTransform, window: Window) -> Row:
        for sample_id in islice(self._candidates(lost, window=window), _MOST_TRIES):
            if (lost.epoch, sample_id) in self._known_lost:
                continue
            found = next(iter(self._reader.scan(sample_id, sample_id + 1, epoch=lost.epoch)))
            if isinstance(found, RawSample):
                sample = replace(found, view=lost.view)
                # Drawn for the lost sample: the one in its place is seen in its own place too, and not twice alike.
                with contextlib.suppress(UnreadableSampleError):
                    fields = self._fields(sample, transform=transform, drawn_for=lost.sample_id)
                    self._replaced[lost.epoch, lost.sample_id] = sample_id
                    return Row(sample=sample, fields=fields, lost=replace(lost, replaced_by=sample_id))
            self._known_lost.add((lost.epoch, sample_id))
        raise DataError(f"{lost.reason} No readable sample was found to take its place among the {_MOST_TRIES} after it in its lane.")

    def _candidates(self, lost: LostSample, *, window: Window) -> Iterator[int]:
        recorded = self._replaced.get((lost.epoch, lost.sample_id))
        if recorded is not None:
            yield recorded
        key = np.uint64(counter_key(self._seed, lost.epoch, "replacement", lost.sample_id))
        while True:
            ids = np.sort(self._order.window_ids(window))
            yield from ids[np.argsort(mix_array(ids.astype(np.uint64) ^ key), kind="stable")].tolist()
            window = self._order.window_after(window)

    def _fields(self, sample: RawSample, *, transform: SampleTransform, drawn_for: int) -> SampleFields:
        return transform(sample, CounterRng(self._seed, sample.view, drawn_for, "transform"))


def _lost(sample: RawSample, *, reason: str) -> LostSample:
    return LostSample(sample_id=sample.sample_id, epoch=sample.epoch, view=sample.view, shard=sample.shard, reason=reason)
