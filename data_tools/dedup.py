"""Finds duplicate images within a data set and between it and evaluation sets, and writes the list of samples to remove."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image

from vitscale.config import DataError, UsageError
from vitscale.data.dataset import Dataset
from vitscale.data.images.decode import decode_image_member
from vitscale.data.reader import SampleReader
from vitscale.data.types import RawSample

from .atomic import check_local, encode_array, output_errors, replace_file
from .contact_sheet import Tile, contact_sheet, write_sheet
from .fingerprints import FingerprintJob, Fingerprints, decode_rows, fingerprint_part
from .jobs import in_order
from .kept_results import Form, KeptFolder, Say, kept_folder, kept_results
from .matches import OWN_SET, Match, find_matches
from .perceptual_hash import MAX_DISTANCE
from .samples import parts

DEFAULT_DISTANCE = 6
"""On photographs new compression and halved sizes stay below it, also most crops by 2 %; chance does not come near."""

_NUM_PAIRS_SHOWN = 48
_PAIRS_IN_A_ROW = 4
_TILE_SIZE = 160


@dataclass(frozen=True, kw_only=True)
class DedupRequest:
    """What to compare and where the findings go."""

    dataset: Dataset
    against: tuple[Dataset, ...]
    """Evaluation sets: what they hold is removed from the data set."""
    output: Path
    """The removal list, one key a line; the pairs go beside it."""
    max_distance: int = DEFAULT_DISTANCE
    """Bits in which the perceptual hashes of near duplicates may differ."""
    compares_own: bool = True
    """Whether duplicates within the data set are looked for as well."""
    sheet: Path | None = None
    """Where a picture of pairs goes."""

    @property
    def pairs_path(self) -> Path:
        return self.output.with_name(f"{self.output.name}.pairs.tsv")

    @property
    def work(self) -> Path:
        return self.output.with_name(f".{self.output.name}.dedup")

    @property
    def num_images(self) -> int:
        return sum(dataset.num_samples for dataset in (self.dataset, *self.against))


@dataclass(frozen=True, kw_only=True)
class DedupSummary:
    """What was found."""

    counts: dict[tuple[str, bool], int]
    """Samples to remove by kind of duplicate and whether it is one of an evaluation set."""
    num_unreadable: int
    """Images of the data set that cannot be decoded: only their bytes were compared."""
    num_removed: int
    seconds: float


def check_request(request: DedupRequest) -> None:
    """Raises `UsageError` for a request that makes no sense or an output that exists.

    The list is written last. What an unfinished attempt has left beside it before it was killed is replaced.
    """
    if not 0 <= request.max_distance <= MAX_DISTANCE:
        raise UsageError(f"--threshold {request.max_distance}: between 0 and {MAX_DISTANCE} of the 64 bits may differ.")
    if not request.compares_own and not request.against:
        raise UsageError("--only-against has nothing to compare with: name evaluation sets with --against.")
    check_local(request.output)
    before_the_list = [request.pairs_path, *([] if request.sheet is None else [request.sheet])]
    for path in (request.output, *([] if request.work.exists() else before_the_list)):
        if path.exists():
            raise UsageError(f"{path}: exists already and is not overwritten. Give another name, or remove it.")


def dedup(
    request: DedupRequest, *, workers: int = 1, report: Callable[[int], None] | None = None, say: Say = lambda _: None
) -> DedupSummary:
    """Compare all images and write the removal list, last. `report(n)` is called with the number of images looked at.

    A command that was killed finds the images it has looked at when it is started again. Needs about 150 bytes of memory an
    image. Raises `DataError` for damaged samples, samples without images and keys that name two samples.
    """
    check_request(request)
    started = time.monotonic()
    with output_errors(request.output), kept_folder(request.work, say=say) as kept:
        own, *others = _fingerprints(request, kept=kept, workers=workers, report=report)
        _refuse_repeated_keys(own, dataset=request.dataset)
        matches = find_matches(own, against=others, max_distance=request.max_distance, compares_own=request.compares_own)
        samples = _Samples([request.dataset, *request.against])
        pairs = [_pair(match, samples=samples) for match in matches]
        if request.sheet is not None and matches:
            with output_errors(request.sheet):
                write_sheet(_pair_sheet(matches, samples=samples), request.sheet)
        replace_file(request.pairs_path, _pair_lines(pairs).encode())
        replace_file(request.output, _removal_lines(pairs, root=samples.root(OWN_SET)).encode())
    return DedupSummary(
        counts=_counts(matches),
        num_unreadable=int((~own["is_readable"]).sum()),
        num_removed=len(matches),
        seconds=time.monotonic() - started,
    )


def _counts(matches: Sequence[Match]) -> dict[tuple[str, bool], int]:
    return dict(Counter((match.kind, match.other_set != OWN_SET) for match in matches))


def _fingerprints(request: DedupRequest, *, kept: KeptFolder, workers: int, report: Callable[[int], None] | None) -> list[Fingerprints]:
    """One table for each data set, the own one first."""
    datasets = (request.dataset, *request.against)
    jobs = [[FingerprintJob(set_number=number, part=part) for part in parts(dataset)] for number, dataset in enumerate(datasets)]
    task = partial(fingerprint_part, readers=[SampleReader(dataset) for dataset in datasets])
    form: Form[FingerprintJob, Fingerprints] = Form(
        # The manifest vouches for every byte, since damaged samples are refused: rows are the same while it is.
        name=lambda job: f"{datasets[job.set_number].sha256[:32]}-{job.part.first}-{job.part.stop}.npy",
        size=lambda job: job.num_samples,
        encode=encode_array,
        decode=lambda _, raw: decode_rows(raw),
    )
    all_jobs = [job for group in jobs for job in group]
    tables = iter(in_order(kept_results(task, all_jobs, kept=kept, form=form, workers=workers, report=report)))
    return [np.concatenate([next(tables) for _ in group]) for group in jobs]


def _refuse_repeated_keys(own: Fingerprints, *, dataset: Dataset) -> None:
    """A removal list names samples by their keys."""
    order = np.argsort(own["key"], kind="stable")
    hashes = own["key"][order]
    samples = _Samples([dataset])
    for place in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
        first, second = (samples.read(OWN_SET, int(number)) for number in order[place : place + 2])
        if first.key == second.key:
            raise DataError(
                f"{dataset.storage.root}: the key {first.key!r} names samples in {first.shard} and {second.shard}, and a removal list "
                "could not tell them apart. Write the data set with keys that occur once."
            )


class _Samples:
    """Single samples of the compared sets, by the number of the set as matches have it."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._readers = [SampleReader(dataset) for dataset in datasets]
        self._roots = [dataset.index_storage.root for dataset in datasets]

    def read(self, other_set: int, sample_id: int) -> RawSample:
        return self._readers[other_set + 1].read(sample_id, sample_id + 1)[0]

    def root(self, other_set: int) -> str:
        return self._roots[other_set + 1]


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A match with the names of its samples."""

    match: Match
    key: str
    other_key: str
    other_root: str


def _pair(match: Match, *, samples: _Samples) -> _Pair:
    key, other_key = samples.read(OWN_SET, match.sample_id).key, samples.read(match.other_set, match.other_id).key
    if key.startswith("#") or key != key.strip():
        raise DataError(f"{samples.root(OWN_SET)}: the key {key!r} cannot be a line of a removal list. Rename the file in the tar.")
    return _Pair(match=match, key=key, other_key=other_key, other_root=samples.root(match.other_set))


def _removal_lines(pairs: Sequence[_Pair], *, root: str) -> str:
    """One key a line, after a comment that says why."""
    lines = [f"# {len(pairs)} samples of {root} that repeat others, by vitscale-data dedup"]
    for pair in pairs:
        match = pair.match
        where = "" if match.other_set == OWN_SET else f" of {pair.other_root}"
        how = f"{match.distance} bits from" if match.kind == "near" else f"the {match.kind} of"
        lines += [f"# {how} {pair.other_key}{where}", pair.key]
    return "\n".join(lines) + "\n"


def _pair_lines(pairs: Sequence[_Pair]) -> str:
    rows = [("removed", "kind", "distance", "repeats", "in")]
    rows += [(pair.key, pair.match.kind, str(pair.match.distance), pair.other_key, pair.other_root) for pair in pairs]
    return "".join("\t".join(row) + "\n" for row in rows)


def _pair_sheet(matches: Sequence[Match], *, samples: _Samples) -> PIL.Image.Image:
    """The pairs that most need a look: the least alike ones first."""
    shown = sorted(matches, key=lambda match: (-match.distance, match.kind != "pixels", match.sample_id))[:_NUM_PAIRS_SHOWN]
    tiles = []
    for match in shown:
        how = f"{match.distance} bits" if match.kind == "near" else f"same {match.kind}"
        tiles.append(_tile(samples.read(OWN_SET, match.sample_id), note=f"goes ({how})"))
        tiles.append(_tile(samples.read(match.other_set, match.other_id), note="stays" if match.other_set == OWN_SET else "evaluation"))
    width = 2 * _PAIRS_IN_A_ROW
    return contact_sheet([tiles[start : start + width] for start in range(0, len(tiles), width)], tile_size=_TILE_SIZE)


def _tile(sample: RawSample, *, note: str) -> Tile:
    try:
        image = decode_image_member(sample, num_channels=3)
    except DataError:
        image, note = None, f"{note}, unreadable"
    return Tile(image_HWC=image, caption=f"{note}\n{sample.key}")
