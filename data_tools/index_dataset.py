"""Makes a folder or bucket of WebDataset tars trainable as it lies there: an index per tar and a manifest."""

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vitscale.config import DataError, UsageError
from vitscale.data.index import decode_index, index_name
from vitscale.data.manifest import MANIFEST_NAME, Manifest, Shard, encode_manifest
from vitscale.data.storage.storage import LocalStorage, Storage, open_storage
from vitscale.data.types import StoredFile
from vitscale.data.ustar import parse_sample

from .atomic import check_local, locked_folder, output_errors, replace_file
from .index_shard import PICKLES, IndexJob, ShardRecord, Unusable, index_shard, keys_path, read_record
from .jobs import run_jobs
from .key_hashes import Duplicates, Place, StoredTables, find_duplicates

WORK_FOLDER = ".vitscale-index"

MAX_UNNAMED_CLASSES = 1 << 20
"""Labels are taken for class numbers up to this one; beyond it they number something else, and no class is named."""

_NUM_SHOWN = 5
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, kw_only=True)
class IndexRequest:
    """What to index and how."""

    source: str
    """Folder or address (`s3://bucket/prefix`) that holds the tars, also in subfolders."""
    output: Path | None = None
    """Where the indexes and the manifest go; None: beside the tars of a local folder."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in label order; None: their numbers, where every sample has one."""
    split: str | None = None
    allow_pickles: bool = False
    allow_duplicate_keys: bool = False


@dataclass(frozen=True, kw_only=True)
class IndexPlan:
    """The tars that were found, and which of them an earlier run has finished."""

    request: IndexRequest
    storage: Storage
    output: Path
    jobs: tuple[IndexJob, ...]
    num_bytes: int
    num_finished: int

    @property
    def is_beside_the_tars(self) -> bool:
        return isinstance(self.storage, LocalStorage) and os.path.realpath(self.storage.root) == os.path.realpath(self.output)


@dataclass(frozen=True, kw_only=True)
class IndexSummary:
    """What was indexed; `notes` are sentences that the user should read."""

    output: Path
    manifest: Manifest
    notes: tuple[str, ...]
    seconds: float


def plan_index(request: IndexRequest) -> IndexPlan:
    """Find the tars, without writing anything. Raises `UsageError` and `DataError` for a source that cannot be indexed."""
    _check_source(request.source)
    output = request.output or _beside(request.source)
    check_local(output)
    if (output / MANIFEST_NAME).exists():
        raise UsageError(
            f"{output / MANIFEST_NAME}: exists already and is not overwritten. Give another --output, or remove it to index anew."
        )
    storage = open_storage(request.source)
    num_classes = None if request.classes is None else len(request.classes)
    jobs = tuple(
        IndexJob(
            storage=storage,
            file=file,
            output=output,
            work=output / WORK_FOLDER,
            num_classes=num_classes,
            allow_pickles=request.allow_pickles,
        )
        for file in _tars(storage)
    )
    return IndexPlan(
        request=request,
        storage=storage,
        output=output,
        jobs=jobs,
        num_bytes=sum(job.file.size for job in jobs),
        num_finished=sum(read_record(job) is not None for job in jobs),
    )


def write_index(plan: IndexPlan, *, workers: int = 1, report: Callable[[int], None] | None = None) -> IndexSummary:
    """Index every tar and write the manifest, last. `report(n)` is called with the bytes read.

    A run that was killed or found something wrong leaves what it has finished in `.vitscale-index`, and the next one goes
    on from there. Raises `DataError` that names what cannot be indexed.
    """
    started = time.monotonic()
    work = plan.output / WORK_FOLDER
    with output_errors(plan.output), locked_folder(work):
        results = run_jobs(index_shard, plan.jobs, workers=workers, report=report)
        records = _usable(results, plan=plan)
        duplicates = _duplicates(plan, records=records)
        manifest = _manifest(plan, records=records, num_duplicates=duplicates.count)
        replace_file(plan.output / MANIFEST_NAME, encode_manifest(manifest))
        shutil.rmtree(work)
    notes = (*_notes(records, manifest=manifest), *(f"Repeated key: {sentence}." for sentence in duplicates.sentences))
    return IndexSummary(output=plan.output, manifest=manifest, notes=notes, seconds=time.monotonic() - started)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Class names of a text file, one a line, in label order. Raises `DataError`."""
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}). Give a file with one class name a line, in label order.") from None
    if not names or not all(names):
        raise DataError(f"{path}: empty, or with an empty line, which would be a class without a name. Give one class name a line.")
    return names


def _check_source(source: str) -> None:
    if source.startswith("pipe:"):
        raise UsageError(f"{source}: runs a command, and vitscale never does. Give the folder or address (s3://...) that holds the tars.")
    if not _ADDRESS.match(source) and not Path(source).is_dir():
        raise DataError(f"{source}: no such folder. Give the folder or address (s3://...) that holds the tars, not a pattern of names.")


def _beside(source: str) -> Path:
    if _ADDRESS.match(source):
        raise UsageError(f"{source}: the index of an object store's tars is kept in a local folder. Name one with --output.")
    return Path(source)


def _tars(storage: Storage) -> list[StoredFile]:
    tars = storage.list_files(".tar")
    if not tars:
        raise DataError(f"{storage.root}: holds no .tar files. Compressed tars cannot be read in ranges: decompress them first.")
    for tar in tars:
        try:
            Shard(name=tar.name, bytes=1, num_samples=1, sha256="0" * 64, index_sha256="0" * 64)
        except ValidationError:
            raise DataError(
                f"{storage.root}: the tar {tar.name!r} has a name with other characters than letters, digits and ._-=+,@, or a part that "
                "starts with a dot. Rename it."
            ) from None
    return tars


def _usable(results: Sequence[ShardRecord | Unusable], *, plan: IndexPlan) -> list[ShardRecord]:
    problems = [result.problem for result in results if isinstance(result, Unusable)]
    if problems:
        more = f" (and {len(problems) - _NUM_SHOWN} more)" if len(problems) > _NUM_SHOWN else ""
        raise DataError(
            f"{plan.storage.root}: {len(problems)} of {len(results)} tars cannot be indexed{more}: {' '.join(problems[:_NUM_SHOWN])} "
            "Mend them and run the command again: it keeps what it has finished."
        )
    return [result for result in results if isinstance(result, ShardRecord)]


def _duplicates(plan: IndexPlan, *, records: Sequence[ShardRecord]) -> Duplicates:
    """Keys that occur in two tars; raises `DataError` unless that is allowed."""

    def read_key(place: Place) -> str:
        shard = records[place.table].shard
        path = plan.output / index_name(shard.name)
        offset, length, _ = decode_index(path.read_bytes(), shard=shard, path=str(path))[place.row].tolist()
        return parse_sample(memoryview(plan.storage.read_range(shard.name, offset=offset, length=length)))[0]

    duplicates = find_duplicates(
        StoredTables([keys_path(job) for job in plan.jobs]),
        read_key=read_key,
        name_place=lambda place: records[place.table].shard.name,
        num_named=_NUM_SHOWN,
    )
    if duplicates.count and not plan.request.allow_duplicate_keys:
        raise DataError(
            f"{plan.storage.root}: {duplicates.count} keys occur more than once: {', '.join(duplicates.sentences)}. Keys name samples, in"
            " removal lists for one: write them anew, or add --allow-duplicate-keys where the samples differ all the same."
        )
    return duplicates


def _manifest(plan: IndexPlan, *, records: Sequence[ShardRecord], num_duplicates: int) -> Manifest:
    return Manifest(
        split=plan.request.split,
        num_samples=sum(record.shard.num_samples for record in records),
        classes=plan.request.classes or _numbered_classes(records),
        members=tuple(sorted({name for record in records for name in record.members})),
        shards=tuple(record.shard for record in records),
        source={"kind": "webdataset", **({"duplicate_keys": num_duplicates} if num_duplicates else {})},
        shards_root=None if plan.is_beside_the_tars else _root(plan.storage),
    )


def _root(storage: Storage) -> str:
    return os.path.abspath(storage.root) if isinstance(storage, LocalStorage) else storage.root


def _numbered_classes(records: Sequence[ShardRecord]) -> tuple[str, ...] | None:
    counts = [record.num_labels for record in records if record.num_labels is not None]
    if len(counts) < len(records) or max(counts) > MAX_UNNAMED_CLASSES:
        return None
    return tuple(str(label) for label in range(max(counts)))


def _notes(records: Sequence[ShardRecord], *, manifest: Manifest) -> list[str]:
    notes = []
    num_passed_over = sum(record.num_passed_over for record in records)
    if num_passed_over:
        names = [name for record in records for name in record.passed_over][:3]
        notes.append(f"{num_passed_over} members belong to no sample (no key or extension) and were passed over: {', '.join(names)}.")
    pickles = [name for name in manifest.members if name.rpartition(".")[2] in PICKLES]
    if pickles:
        notes.append(f"Members {', '.join(pickles)} are pickles and will never be decoded.")
    if manifest.classes is None:
        notes.append("No classes: some samples have no member .cls with a whole number.")
    return notes
