"""Measures a data set: sizes, classes, pixels, proportions and duplicate keys, in whole numbers that do not depend on the order."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitscale.data.dataset import Dataset
from vitscale.data.images.decode import IMAGE_MEMBERS, decode_image_member
from vitscale.data.labels import LABEL_MEMBER
from vitscale.data.reader import SampleReader
from vitscale.data.types import RawSample, UnreadableSampleError

from .atomic import replace_file
from .jobs import Advance
from .kept_results import Form, KeptFolder, kept_results
from .key_hashes import KEY_DTYPE, Duplicates, KeyTable, Place, find_duplicates, key_table
from .samples import Part, chosen, parts, scan_chosen
from .shard_states import ShardStates

NUM_CHANNELS = 3
BYTE_EDGES = tuple(round(2 ** (step / 2)) for step in range(12, 61))
"""Edges of the histogram of bytes per sample: half octaves from 64 B to 1 GiB."""
SIDE_EDGES = (*range(0, 1024, 32), *range(1024, 4097, 256))
"""Edges of the histogram of the images' shorter sides, in pixels."""
ASPECT_EDGES = tuple(2 ** (step / 4) for step in range(-8, 9))
"""Edges of the histogram of width / height: quarter octaves from 1:4 to 4:1."""

_SAMPLES_AT_ONCE = 64
_LONGEST_LABEL = 1024
_NUM_SHOWN = 5


@dataclass(kw_only=True)
class Counts:
    """What was counted; two are added by adding everything."""

    num_samples: int = 0
    num_images: int = 0
    num_bytes: int = 0
    num_labelled: int = 0
    """Samples with a member `cls`."""
    labels: Counter[str] = field(default_factory=Counter)
    """By the label's text; a sample with several labels counts for each."""
    byte_histogram: Counter[int] = field(default_factory=Counter)
    """By the place among `BYTE_EDGES`; 0 is below the first."""
    side_histogram: Counter[int] = field(default_factory=Counter)
    aspect_histogram: Counter[int] = field(default_factory=Counter)
    pixel_values: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((NUM_CHANNELS, 256), np.int64))
    """For R, G, B: how often each value occurs, over all pixels of all images."""
    num_unreadable: int = 0
    """Images that cannot be decoded and samples that are damaged."""
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    """The first few of each part: the sample's number and a sentence."""

    def add(self, other: "Counts") -> None:
        """Add what another part has counted."""
        self.num_samples += other.num_samples
        self.num_images += other.num_images
        self.num_bytes += other.num_bytes
        self.num_labelled += other.num_labelled
        self.labels.update(other.labels)
        self.byte_histogram.update(other.byte_histogram)
        self.side_histogram.update(other.side_histogram)
        self.aspect_histogram.update(other.aspect_histogram)
        self.pixel_values += other.pixel_values
        self.num_unreadable += other.num_unreadable
        self.unreadable += other.unreadable

    def add_unreadable(self, sample_id: int, reason: str) -> None:
        """Count a sample that cannot be read, and remember it if it is one of the first."""
        self.num_unreadable += 1
        if len(self.unreadable) < _NUM_SHOWN:
            self.unreadable.append((sample_id, reason))


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What `measure` found."""

    dataset: Dataset
    counts: Counts
    duplicate_keys: tuple[str, ...]
    """A few keys that occur twice, with their shards."""
    num_duplicate_keys: int
    seconds: float

    @property
    def unreadable(self) -> list[str]:
        """A sentence for each of the first samples that cannot be read."""
        return [reason for _, reason in sorted(self.counts.unreadable)[:_NUM_SHOWN]]

    @property
    def mean(self) -> tuple[float, ...]:
        """Of R, G and B over all pixels, on the scale 0 to 1."""
        return tuple(moments(values)[0] for values in self.counts.pixel_values.tolist())

    @property
    def std(self) -> tuple[float, ...]:
        """Of R, G and B over all pixels, on the scale 0 to 1."""
        return tuple(moments(values)[1] for values in self.counts.pixel_values.tolist())


def measure(
    dataset: Dataset,
    *,
    fraction: float = 1.0,
    kept: KeptFolder | None = None,
    workers: int = 1,
    report: Callable[[int], None] | None = None,
) -> Stats:
    """Measure all samples or a share of them; `report(n)` is called with the number of samples done.

    The result is the same for any number of workers. Damaged samples and images are counted, not raised. Parts that `kept`
    has the figures of, as their shards are now, are not read again. Needs about 12 bytes of memory a sample.
    """
    started = time.monotonic()
    jobs = parts(dataset)
    task = partial(measure_part, reader=SampleReader(dataset), fraction=fraction)
    form = _form(ShardStates(dataset))
    counts, tables = Counts(), dict[int, KeyTable]()
    with closing(kept_results(task, jobs, kept=kept or KeptFolder(), form=form, workers=workers, report=report)) as measured:
        for number, (of_part, table) in measured:
            counts.add(of_part)
            tables[number] = table
    duplicates = _duplicates(SampleReader(dataset), tables=[tables[number] for number in range(len(jobs))], jobs=jobs, fraction=fraction)
    return Stats(
        dataset=dataset,
        counts=counts,
        duplicate_keys=duplicates.sentences,
        num_duplicate_keys=duplicates.count,
        seconds=time.monotonic() - started,
    )


def measure_part(part: Part, advance: Advance, *, reader: SampleReader, fraction: float) -> tuple[Counts, KeyTable]:
    """Count one part; `advance(n)` is called as samples are done. The table has a row for every sample that was looked at."""
    counts = Counts()
    keys = []
    wanted = numbers(part, fraction=fraction)
    for start in range(0, len(wanted), _SAMPLES_AT_ONCE):
        chunk = wanted[start : start + _SAMPLES_AT_ONCE]
        for sample in scan_chosen(reader, chunk):
            if isinstance(sample, RawSample):
                keys.append(sample.key)
                _count(sample, counts=counts)
            else:
                keys.append(f"\0{sample.sample_id}")  # no key is like it: what cannot be read repeats nothing
                counts.add_unreadable(sample.sample_id, sample.reason)
        advance(len(chunk))
    advance(part.stop - part.first - len(wanted))
    return counts, key_table(keys)


def numbers(part: Part, *, fraction: float) -> Sequence[int]:
    """The samples of a part that are looked at."""
    return chosen(part, fraction=fraction, purpose="stats")


def moments(histogram: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation of byte values on the scale 0 to 1, exact up to the last rounding; (0, 0) of nothing."""
    count = sum(histogram)
    if count == 0:
        return 0.0, 0.0
    total = sum(value * number for value, number in enumerate(histogram))
    squares = sum(value * value * number for value, number in enumerate(histogram))
    return total / (255 * count), math.sqrt(count * squares - total * total) / (255 * count)


def as_json(stats: Stats) -> dict[str, object]:
    """Everything that was found, for other programs."""
    counts, manifest = stats.counts, stats.dataset.manifest
    return {
        "root": stats.dataset.index_storage.root,
        "manifest_sha256": stats.dataset.sha256,
        "num_samples": manifest.num_samples,
        "num_shards": len(manifest.shards),
        "tar_bytes": sum(shard.bytes for shard in manifest.shards),
        "measured": {"samples": counts.num_samples, "images": counts.num_images, "member_bytes": counts.num_bytes},
        "members": list(manifest.members),
        "classes": None if manifest.classes is None else len(manifest.classes),
        "labels": {label: counts.labels[label] for label in sorted(counts.labels, key=label_order)},
        "mean": list(stats.mean),
        "std": list(stats.std),
        "pixel_values": counts.pixel_values.tolist(),
        "bytes_per_sample": {"edges": list(BYTE_EDGES), "counts": _filled(counts.byte_histogram, BYTE_EDGES)},
        "short_side": {"edges": list(SIDE_EDGES), "counts": _filled(counts.side_histogram, SIDE_EDGES)},
        "aspect_ratio": {"edges": list(ASPECT_EDGES), "counts": _filled(counts.aspect_histogram, ASPECT_EDGES)},
        "unreadable": {"count": counts.num_unreadable, "first": stats.unreadable},
        "duplicate_keys": {"count": stats.num_duplicate_keys, "first": list(stats.duplicate_keys)},
    }


def write_json(stats: Stats, path: Path) -> None:
    """Write `as_json`. Raises `OSError`."""
    replace_file(path, (json.dumps(as_json(stats), indent=2) + "\n").encode())


def quantile_edge(histogram: Counter[int], edges: Sequence[float], share: float) -> float:
    """The smallest edge with at least this share of the counted things below it; the last one where none has."""
    wanted = share * sum(histogram.values())
    below = 0
    for place, edge in enumerate(edges):
        below += histogram[place]
        if below >= wanted:
            return edge
    return edges[-1]


def _count(sample: RawSample, *, counts: Counts) -> None:
    size = sum(len(member) for member in sample.members.values())
    counts.num_samples += 1
    counts.num_bytes += size
    counts.byte_histogram[int(np.searchsorted(BYTE_EDGES, size, side="right"))] += 1
    if LABEL_MEMBER in sample.members:
        counts.num_labelled += 1
        counts.labels.update(_labels(bytes(sample.members[LABEL_MEMBER][:_LONGEST_LABEL])))
    if not any(name in sample.members for name in IMAGE_MEMBERS):
        return
    try:
        image_HWC = decode_image_member(sample, num_channels=NUM_CHANNELS)
    except UnreadableSampleError as error:
        counts.add_unreadable(sample.sample_id, str(error))
        return
    height, width = image_HWC.shape[:2]
    counts.num_images += 1
    counts.side_histogram[int(np.searchsorted(SIDE_EDGES, min(height, width), side="right"))] += 1
    counts.aspect_histogram[int(np.searchsorted(ASPECT_EDGES, width / height, side="right"))] += 1
    for channel, totals in enumerate(counts.pixel_values):
        totals += np.bincount(image_HWC[:, :, channel].ravel(), minlength=256)


def _labels(text: bytes) -> list[str]:
    """Numbers with spaces between are labels by themselves, any other text is one label."""
    parts = text.decode(errors="replace").split()
    return parts if all(part.isdecimal() for part in parts) else [" ".join(parts)]


def _duplicates(reader: SampleReader, *, tables: Sequence[KeyTable], jobs: Sequence[Part], fraction: float) -> Duplicates:
    def read(place: Place) -> RawSample:
        number = numbers(jobs[place.table], fraction=fraction)[place.row]
        return reader.read(number, number + 1)[0]

    return find_duplicates(tables, read_key=lambda place: read(place).key, name_place=lambda place: read(place).shard, num_named=_NUM_SHOWN)


def _filled(histogram: Counter[int], edges: Sequence[float]) -> list[int]:
    """Counts below the first edge, between edges, and from the last one on."""
    return [histogram[place] for place in range(len(edges) + 1)]


def label_order(label: str) -> tuple[int, str]:
    """Numbers by their value, then everything else."""
    return (int(label), "") if label.isdecimal() else (1 << 62, label)


def _form(states: ShardStates) -> Form[Part, tuple[Counts, KeyTable]]:
    return Form(
        name=lambda part: f"{part.first}-{part.stop}-{states.of(part.first, part.stop)}",
        size=lambda part: part.stop - part.first,
        encode=_encoded,
        decode=lambda _, raw: _decoded(raw),
        # Of a sample that is lost the table has a row all the same.
        lasts=lambda measured: states.show_changes or measured[0].num_samples == len(measured[1]),
    )


def _encoded(measured: tuple[Counts, KeyTable]) -> bytes:
    """A line of JSON, then the table as it is, a third of what it would take as text."""
    counts, table = measured
    values = {**vars(counts), "pixel_values": counts.pixel_values.tolist()}
    # Histograms have numbers for keys, which JSON objects cannot.
    lists = {name: sorted(value.items()) if isinstance(value, Counter) else value for name, value in values.items()}
    return json.dumps({"num_rows": len(table), "counts": lists}).encode() + b"\n" + table.tobytes()


def _decoded(raw: bytes) -> tuple[Counts, KeyTable]:
    head, _, rows = raw.partition(b"\n")
    values = json.loads(head)
    counts = Counts(**values["counts"])
    for name in ("labels", "byte_histogram", "side_histogram", "aspect_histogram"):
        setattr(counts, name, Counter(dict(values["counts"][name])))
    counts.pixel_values = np.array(values["counts"]["pixel_values"], np.int64)
    counts.unreadable = [(number, reason) for number, reason in values["counts"]["unreadable"]]
    table = np.frombuffer(rows, KEY_DTYPE)
    if len(table) != values["num_rows"]:
        raise ValueError("cut short")
    return counts, table
