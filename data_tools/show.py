"""A picture of random samples with their labels and captions, and of what a run's transforms make of them."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import PIL.Image

from vitscale.config import DataError
from vitscale.data.dataset import Dataset
from vitscale.data.images.decode import IMAGE_MEMBERS, decode_image_member
from vitscale.data.labels import CAPTION_MEMBER, LABEL_MEMBER
from vitscale.data.reader import SampleReader
from vitscale.data.types import RawSample
from vitscale.dist.seeding import CounterRng

from .contact_sheet import Tile, contact_sheet
from .jobs import Advance, run_jobs
from .samples import scan_chosen

Pixels = npt.NDArray[np.uint8]
Views = Callable[[RawSample], list[Pixels]]
"""What a run's transforms make of a sample, uint8 (H, W, C) each. Picklable."""

TILE_SIZE = 160


def draw_samples(
    dataset: Dataset, *, sample_ids: Sequence[int], views: Views | None, workers: int = 1, report: Callable[[int], None] | None = None
) -> PIL.Image.Image:
    """The samples in a near-square grid; with `views` a row each, the sample as it is before what is made of it.

    Samples that are damaged or cannot be decoded are shown as such. Raises `DataError` where the transforms refuse one,
    `UsageError` for a picture of too many pixels.
    """
    task = partial(sample_tiles, reader=SampleReader(dataset), classes=dataset.classes, views=views)
    rows = run_jobs(task, sample_ids, workers=workers, report=report)
    if views is None:
        tiles = [tile for row in rows for tile in row]
        columns = math.ceil(math.sqrt(len(tiles)))
        rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    return contact_sheet(rows, tile_size=TILE_SIZE)


def random_samples(dataset: Dataset, *, num: int, seed: int) -> list[int]:
    """That many different samples, or all where there are fewer, in order; the same for the same seed."""
    count = min(num, dataset.num_samples)
    rng = CounterRng(seed, "show")
    chosen: set[int] = set()
    # Floyd's sampling: as many draws as samples, however large the data set is.
    for last in range(dataset.num_samples - count, dataset.num_samples):
        drawn = rng.integer(0, last + 1)
        chosen.add(last if drawn in chosen else drawn)
    return sorted(chosen)


def sample_tiles(
    sample_id: int, advance: Advance, *, reader: SampleReader, classes: tuple[str, ...] | None, views: Views | None
) -> list[Tile]:
    """The tile of the sample itself, and one for each view."""
    (sample,) = scan_chosen(reader, [sample_id])
    advance(1)
    if not isinstance(sample, RawSample):
        return [Tile(image_HWC=None, caption=f"sample {sample_id} is damaged\n{sample.shard}")]
    tiles = [_tile(sample, classes=classes)]
    if views is not None and tiles[0].image_HWC is not None:
        tiles += [Tile(image_HWC=image, caption=f"view {number}") for number, image in enumerate(views(sample))]
    return tiles


def _tile(sample: RawSample, *, classes: tuple[str, ...] | None) -> Tile:
    caption = f"{_target(sample, classes=classes)}\n{sample.key}"
    if not any(name in sample.members for name in IMAGE_MEMBERS):
        return Tile(image_HWC=None, caption=f"no image {caption}")
    try:
        return Tile(image_HWC=decode_image_member(sample, num_channels=3), caption=caption)
    except DataError:
        return Tile(image_HWC=None, caption=f"unreadable: {caption}")


def _target(sample: RawSample, *, classes: tuple[str, ...] | None) -> str:
    """The names of the labels and the caption, as far as the sample has them."""
    parts = []
    if LABEL_MEMBER in sample.members:
        labels = bytes(sample.members[LABEL_MEMBER]).decode(errors="replace").split()
        names = [classes[int(label)] if classes and label.isdecimal() and int(label) < len(classes) else label for label in labels]
        parts.append(", ".join(names))
    if CAPTION_MEMBER in sample.members:
        parts.append(" ".join(bytes(sample.members[CAPTION_MEMBER]).decode(errors="replace").split()))
    return ": ".join(part for part in parts if part)
