"""The plan of a pack: which sample goes into which shard of which data set, and with it every byte that will be written."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from vitscale.config import DataError, UsageError
from vitscale.data.ustar import END_OF_ARCHIVE
from vitscale.dist.seeding import counter_key, mix_array

from .images import ImagePolicy, encoder_name
from .key_hashes import key_hash
from .options import SourceOptions
from .selection import UnknownClasses, divide, exclude, map_classes, read_class_map, read_removals
from .sources import SOURCES
from .split import IntArray, Split
from .staging import check_free

DEFAULT_SHARD_MEBIBYTES = 64

_PLAN_VERSION = 1
"""Counts up when another version of this package would write other bytes for the same plan."""

_SPLIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")

UnusableImages = Literal["refuse", "skip"]


@dataclass(frozen=True, kw_only=True)
class PackRequest:
    """What to pack and how; every field but the folders' places decides the bytes that are written."""

    source: str
    """A name in `SOURCES`."""
    input: Path
    output: Path
    source_options: SourceOptions = field(default_factory=SourceOptions)
    split: str | None = None
    """Only this split; `output` is then the data set itself. None: all, each in its subfolder of `output` where the source has splits."""
    samples_per_shard: int | None = None
    shard_mebibytes: int | None = None
    """Shards of about equal size, none larger than this and one sample; 64 if neither is given. Images count as the source has them."""
    order: Literal["shuffled", "source"] = "shuffled"
    """shuffled: one global random order over all shards, so that any stretch of the data set is a mixture of its classes."""
    seed: int = 0
    """Of the shuffled order."""
    policy: ImagePolicy = field(default_factory=ImagePolicy)
    unusable: UnusableImages = "refuse"
    """skip: what cannot be packed is left out and listed in `skipped.txt` of the data set."""
    classes: Path | None = None
    """File with the names of the packed classes, by which labels are mapped."""
    unknown_classes: UnknownClasses = "refuse"
    """skip: samples of classes that `classes` lacks, and those without a class, are left out."""
    exclude: Path | None = None
    """File with the keys or origins of samples to leave out."""
    val_fraction: float | None = None
    val_per_class: int | None = None
    """Either makes two data sets, train and val, in subfolders of `output`."""


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """One data set to be: its folder below the output (empty for the output itself) and the split's sample indices by shard."""

    folder: str
    split: Split
    shards: tuple[IntArray, ...]
    num_bytes: int
    """Of all tars, if no image is skipped or transcoded."""

    def shard_name(self, number: int) -> str:
        """Path of a shard inside the output."""
        return f"{self.folder}/" * bool(self.folder) + f"{self.split.name or 'shard'}-{number:05d}.tar"


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """What `write_pack` will do."""

    request: PackRequest
    datasets: tuple[DatasetPlan, ...]

    @property
    def num_samples(self) -> int:
        return sum(dataset.split.num_samples for dataset in self.datasets)

    @property
    def num_bytes(self) -> int:
        return sum(dataset.num_bytes for dataset in self.datasets)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for dataset in self.datasets for note in dataset.split.notes))

    def description(self, dataset: DatasetPlan) -> dict[str, str | int]:
        """What the manifest says about the data set's source."""
        request, transcode = self.request, self.request.policy.transcode
        values: dict[str, str | int] = {**dataset.split.description, "order": request.order}
        if request.order == "shuffled":
            values["seed"] = request.seed
        if transcode is not None:
            values |= {"transcode": "jpeg", "quality": transcode.quality, "encoder": encoder_name()}
            limits = {"max_short_side": transcode.max_short_side, "max_side": transcode.max_side}
            values |= {name: limit for name, limit in limits.items() if limit is not None}
        return values

    def digest(self) -> str:
        """Equal for plans that write the same bytes: an interrupted pack is continued by these only."""
        digest = hashlib.sha256()
        head = {"version": _PLAN_VERSION, "policy": asdict(self.request.policy), "encoder": encoder_name()}
        digest.update(json.dumps(head, sort_keys=True).encode())
        for dataset in self.datasets:
            _digest_dataset(digest, dataset=dataset, description=self.description(dataset))
        return digest.hexdigest()


def plan_pack(request: PackRequest) -> PackPlan:
    """Open the source and decide which sample goes into which shard, without writing anything.

    Raises `UsageError` for a request that makes no sense or an output that exists, `DataError` for an unusable input.
    """
    _check_request(request)
    source = SOURCES[request.source]
    splits = _chosen_splits(source.open(request.input, request.source_options), request=request)
    selected = [_selected(split, request=request) for split in splits]
    if request.val_fraction is not None or request.val_per_class is not None:
        selected = divide(selected[0], val_fraction=request.val_fraction, val_per_class=request.val_per_class)
        return PackPlan(request=request, datasets=tuple(_plan(split, request=request, folder=split.name or "") for split in selected))
    folders = ["" if request.split is not None else split.name or "" for split in selected]
    return PackPlan(
        request=request,
        datasets=tuple(_plan(split, request=request, folder=folder) for split, folder in zip(selected, folders, strict=True)),
    )


def _check_request(request: PackRequest) -> None:
    if request.source not in SOURCES:
        raise UsageError(f"unknown source {request.source!r}. Known: {', '.join(SOURCES)}.")
    request.source_options.refuse_unless(SOURCES[request.source].options, source=request.source)
    if request.samples_per_shard is not None and request.shard_mebibytes is not None:
        raise UsageError("--samples-per-shard and --shard-mebibytes both set the size of shards. Give one of them.")
    if any(size is not None and size < 1 for size in (request.samples_per_shard, request.shard_mebibytes)):
        raise UsageError("--samples-per-shard and --shard-mebibytes must be at least 1.")
    if request.val_fraction is not None and request.val_per_class is not None:
        raise UsageError("--val-fraction and --val-per-class both choose the validation split. Give one of them.")
    if request.val_fraction is not None and not 0 < request.val_fraction < 1:
        raise UsageError(f"--val-fraction {request.val_fraction}: must lie between 0 and 1.")
    transcode = request.policy.transcode
    if transcode is not None and not 1 <= transcode.quality <= 100:
        raise UsageError(f"--quality {transcode.quality}: must lie between 1 and 100.")
    output, source = Path(os.path.abspath(request.output)), Path(os.path.abspath(request.input))
    if output.is_relative_to(source):
        raise UsageError(f"{request.output}: lies inside the input folder. Give an OUTPUT outside of it.")
    check_free(output)


def _chosen_splits(splits: Sequence[Split], *, request: PackRequest) -> Sequence[Split]:
    names = [split.name for split in splits if split.name is not None]
    unsafe = next((name for name in names if not _SPLIT_NAME.fullmatch(name)), None)
    if unsafe is not None:  # it would name a folder and files, perhaps outside of the output
        raise DataError(f"{request.input}: a split is called {unsafe!r}, which names no folder: letters, digits and ._- only. Rename it.")
    divides = request.val_fraction is not None or request.val_per_class is not None
    if request.split is None:
        if divides and len(splits) > 1:
            raise UsageError(f"the source has the splits {', '.join(names)}: say with --split which of them to divide into train and val.")
        return splits
    if not names:
        raise UsageError(f"--split {request.split}: the source {request.source} has no splits. Pack the folder of each split by itself.")
    if request.split not in names:
        raise UsageError(f"--split {request.split}: {request.input} has {', '.join(names)}.")
    return [split for split in splits if split.name == request.split]


def _selected(split: Split, *, request: PackRequest) -> Split:
    class_map = None if request.classes is None else read_class_map(request.classes)
    split = map_classes(split, class_map=class_map, unknown=request.unknown_classes)
    if request.exclude is not None:
        split = exclude(split, removals=read_removals(request.exclude))
    if split.num_samples == 0:
        raise DataError(f"{request.input}: not one sample is left to pack. Look at --exclude, --classes and --skip-unknown.")
    return split


def _plan(split: Split, *, request: PackRequest, folder: str) -> DatasetPlan:
    order = _sample_order(split, request=request)
    sizes = split.tar_bytes()[order]
    shards = _cut(order, sizes=sizes, request=request)
    return DatasetPlan(folder=folder, split=split, shards=shards, num_bytes=int(sizes.sum()) + len(shards) * len(END_OF_ARCHIVE))


def _sample_order(split: Split, *, request: PackRequest) -> IntArray:
    """The split's sample indices in the order in which they are written: by a hash of the key, whichever others are packed with it."""
    if request.order == "source":
        return np.arange(split.num_samples, dtype=np.int64)
    key = np.uint64(counter_key(request.seed, "pack", split.name or ""))
    # Keys that are made here number the samples.
    names = split.numbers.astype(np.uint64) if split.keys is None else np.array([key_hash(name) for name in split.keys], np.uint64)
    return np.argsort(mix_array(names ^ key), kind="stable")


def _cut(order: IntArray, *, sizes: IntArray, request: PackRequest) -> tuple[IntArray, ...]:
    if request.samples_per_shard is not None:
        return tuple(np.split(order, np.arange(request.samples_per_shard, len(order), request.samples_per_shard)))
    ends = np.cumsum(sizes)
    limit = (request.shard_mebibytes or DEFAULT_SHARD_MEBIBYTES) << 20
    num_shards = -(-int(ends[-1]) // limit)
    targets = [int(ends[-1]) * number // num_shards for number in range(1, num_shards)]
    # A sample larger than a shard makes two cuts at one place.
    cuts = np.unique(np.searchsorted(ends, targets, side="left") + 1) if targets else np.array([], np.int64)
    return tuple(part for part in np.split(order, cuts) if len(part))


def _digest_dataset(digest: "hashlib._Hash", *, dataset: DatasetPlan, description: Mapping[str, str | int]) -> None:
    split = dataset.split
    texts = [dataset.folder, split.name, split.classes, split.key_prefix, split.keys, split.captions, dict(description)]
    digest.update(json.dumps(texts, sort_keys=True).encode())
    digest.update(split.images.identity())
    arrays = [split.numbers, *dataset.shards]
    if split.labels is not None:
        arrays += [split.labels.values] if split.labels.offsets is None else [split.labels.values, split.labels.offsets]
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little") + np.ascontiguousarray(array, "<i8").tobytes())


def absolute(request: PackRequest) -> PackRequest:
    """The same request with paths that mean the same in any working directory."""
    options = request.source_options
    roots = tuple(replace(root, folder=Path(os.path.abspath(root.folder))) for root in options.url_roots)
    image_root = None if options.image_root is None else Path(os.path.abspath(options.image_root))
    return replace(
        request,
        input=Path(os.path.abspath(request.input)),
        output=Path(os.path.abspath(request.output)),
        source_options=replace(options, url_roots=roots, image_root=image_root),
    )
