"""Reading in the order: which slice of the global batches a reader makes, and its windows, each lane's next one read ahead."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np

from vitscale.data.order import Ids, Span, Window
from vitscale.data.types import LostSample, RawSample


class SampleOrder(Protocol):
    """What reading needs of an order: of one data set (`Order`) or of a mixture of several."""

    @property
    def num_samples(self) -> int: ...

    @property
    def lanes(self) -> int: ...

    @property
    def repeats(self) -> int: ...

    def samples_per_lane(self, global_batch: int) -> int: ...

    def batch_spans(self, consumed: int, *, global_batch: int, start: int, stop: int) -> Iterator[Span]: ...

    def window_at(self, consumed: int, *, global_batch: int, position: int) -> Window: ...

    def window_ids(self, window: Window) -> Ids: ...

    def window_after(self, window: Window) -> Window: ...


class SampleScanner(Protocol):
    """What reading needs of a reader: of one data set (`SampleReader`) or of a mixture of several, by flat sample id."""

    def scan(self, first: int, stop: int, *, epoch: int) -> Iterable[RawSample | LostSample]: ...

    def io_counters(self) -> Mapping[str, int]: ...


@dataclass(frozen=True, kw_only=True)
class BatchSlice:
    """The positions [start, stop) of every global batch."""

    start: int
    stop: int


def rank_slice(global_batch: int, *, rank: int, world_size: int) -> BatchSlice:
    """What one rank makes of every global batch; the slices of all ranks are contiguous and differ by at most one sample."""
    return BatchSlice(start=rank * global_batch // world_size, stop=(rank + 1) * global_batch // world_size)


def worker_slice(whole: BatchSlice, *, samples_per_lane: int, worker: int, num_workers: int) -> BatchSlice:
    """What one of a rank's workers makes of the rank's slice; empty where there are more workers than samples.

    Cut between lanes where each worker gets at least one: two workers that share a lane both read all of it.
    """
    length = whole.stop - whole.start
    aligned = whole.start % samples_per_lane == 0 and length % samples_per_lane == 0
    unit = samples_per_lane if aligned and length // samples_per_lane >= num_workers else 1
    start, stop = (length // unit * i // num_workers * unit for i in (worker, worker + 1))
    return BatchSlice(start=whole.start + start, stop=whole.start + stop)


def runs_of(window_ids: Ids) -> list[range]:
    """The ids of a window as runs of neighbours, in rising order: each is fetched, and lost, as a whole."""
    ids = np.sort(window_ids)
    edges = [0, *(np.flatnonzero(np.diff(ids) != 1) + 1).tolist(), len(ids)]
    return [range(int(ids[start]), int(ids[stop - 1]) + 1) for start, stop in pairwise(edges)]


class LaneReader:
    """Reads the samples of a slice of successive global batches: whole windows, one ranged read per block.

    A thread reads each lane's next window while the present one is used up, so that up to two windows of
    `block * window` undecoded samples are held for every lane that the slice touches. Over all readers that is at most
    `2 * lanes * block * window` samples when no two readers share a lane. Each set of a mixture has windows of its own in
    every lane: with three sets three times as much is held.
    """

    def __init__(self, reader: SampleScanner, *, order: SampleOrder) -> None:
        self._order = order
        self._reader = reader  # used by the thread alone
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="window-reader")
        self._lanes: defaultdict[tuple[int, int], deque[_Loading]] = defaultdict(deque)

    def read(self, consumed: int, *, global_batch: int, batch_slice: BatchSlice) -> list[RawSample | LostSample]:
        """The slice's samples of the global batch that follows `consumed` samples, in batch order.

        Batches are read forwards, each once: samples are let go as they are handed out.
        """
        spans = list(self._order.batch_spans(consumed, global_batch=global_batch, start=batch_slice.start, stop=batch_slice.stop))
        for span in spans:  # what this batch needs comes before any reading ahead
            self._request(span.window)
        samples: list[RawSample | LostSample] = []
        for span in spans:
            self._request(self._order.window_after(span.window))
            samples += self._take(span)
        return samples

    def close(self) -> None:
        """Stop reading ahead."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _request(self, window: Window) -> None:
        queue = self._lanes[_lane(window)]
        if all(loading.window != window for loading in queue):
            queue.append(_Loading(window=window, samples=self._thread.submit(self._load, window)))

    def _take(self, span: Span) -> Iterator[RawSample | LostSample]:
        queue = self._lanes[_lane(span.window)]
        while queue[0].window != span.window:
            queue.popleft()
        samples = queue[0].samples.result()
        repeats = self._order.repeats
        for view in range(span.start, span.stop):
            place, repeat = divmod(view, repeats)
            sample = samples[place] if repeat < repeats - 1 else samples.pop(place)
            yield sample if repeats == 1 else replace(sample, view=sample.epoch * repeats + repeat)

    def _load(self, window: Window) -> dict[int, RawSample | LostSample]:
        shuffled_ids = self._order.window_ids(window)
        by_id: dict[int, RawSample | LostSample] = {}
        for run in runs_of(shuffled_ids):
            for sample in self._reader.scan(run.start, run.stop, epoch=window.epoch):
                by_id[sample.sample_id] = sample
        return {place: by_id[sample_id] for place, sample_id in enumerate(shuffled_ids.tolist())}


def _lane(window: Window) -> tuple[int, int]:
    """What has windows one after the other: a lane of one data set."""
    return window.source, window.lane


@dataclass(frozen=True, kw_only=True)
class _Loading:
    """A window that is being read or has been: its samples by their place in its shuffled order."""

    window: Window
    samples: Future[dict[int, RawSample | LostSample]]
