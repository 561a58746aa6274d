"""What checkpoints are and hold, for people and scripts to read: nothing here changes a file."""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitscale.checkpoint.config import CheckpointConfig
from vitscale.checkpoint.discover import checkpoints_folder, verify, why_unusable
from vitscale.checkpoint.durable import disk_errors
from vitscale.checkpoint.foreign import explain_foreign, find_foreign
from vitscale.checkpoint.fragments import ELEMENT_BYTES
from vitscale.checkpoint.layout import CONFIG, MANIFEST, STATE, StepFolder, list_step_folders, parse_step_folder
from vitscale.checkpoint.manifest import Manifest, read_manifest
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.checkpoint.retention import RetentionPolicy, read_scores
from vitscale.config import CheckpointError, ConfigError, decode, parse_yaml

METRICS = "metrics.jsonl"
"""In the run directory beside the checkpoints directory: where figures for keep_best are read."""


@dataclass(frozen=True, kw_only=True)
class ListedCheckpoint:
    """A checkpoint folder at a glance. `problem` says why one that is not whole cannot be used; sizes are compared, not hashes.

    `kept_because` is empty where the next save deletes it. What a damaged one does not tell is None.
    """

    path: str
    step: int
    state: Literal["whole", "damaged", "unfinished", "replaced"]
    problem: str | None
    num_bytes: int
    samples: int | None
    created: str | None
    world_size: int | None
    zero_stage: int | None
    kept_because: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DescribedTensor:
    """One parameter: its shape, what is kept of it (weight, moments, moving average) and the bytes of all that."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kinds: tuple[str, ...]
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Description:
    """Everything a checkpoint says of itself. What its writer did not record is None."""

    path: str
    step: int
    optimizer_steps: int
    samples: int | None
    created: str
    world_size: int
    zero_stage: int
    format_version: int
    versions: dict[str, str]
    config_hash: str | None
    schedule: dict[str, Any] | None
    data: dict[str, Any]
    num_lost_samples: int
    num_bytes: int
    num_parameters: int
    files: tuple[dict[str, Any], ...]
    tensors: tuple[DescribedTensor, ...]


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What reading every byte of a checkpoint folder came to; `problem` is None where it is whole and unchanged."""

    path: str
    step: int
    state: Literal["whole", "damaged", "unfinished"]
    problem: str | None
    num_bytes: int


def find_folders(path: Path) -> list[StepFolder]:
    """The checkpoint folders that a user's path means, newest first: one, or all of a run or of a checkpoints directory.

    Raises `CheckpointError` when there is none.
    """
    path = path.absolute()
    with disk_errors():
        named = parse_step_folder(path)
        if named is not None and path.is_dir():
            return [named]
        if (path / MANIFEST).is_file():
            return [StepFolder(path=path, step=read_manifest(path).step, role="committed")]
        folder = checkpoints_folder(path)
        entries = list_step_folders(folder)
        if entries:
            return entries
        foreign = next(
            (explain_foreign(found) for found in (path, *_foreign_in(path), *_foreign_in(folder)) if explain_foreign(found)), None
        )
    missing = "" if path.exists() else " (there is no such path)"
    reason = (
        f": {foreign}" if foreign else f"{missing}; give a run directory that has saved one, its checkpoints directory, or one checkpoint"
    )
    raise CheckpointError(f"{path}: no checkpoint of vitscale{reason}")


def read_policy(path: Path, *, keep: int | None = None) -> RetentionPolicy | None:
    """What the run that wrote the checkpoints at `path` keeps, from its configuration; `keep` replaces that setting.

    None where neither is known. Raises `ConfigError` when the configuration is no longer understood.
    """
    folder = find_folders(path)[0].path.parent
    configs = [folder.parent / CONFIG, *(entry.path / CONFIG for entry in list_step_folders(folder) if entry.role == "committed")]
    config_path = next((candidate for candidate in configs if candidate.is_file()), None)
    if config_path is None:
        return None if keep is None else RetentionPolicy(keep=keep)
    with disk_errors():
        values = parse_yaml(config_path.read_text(encoding="utf-8"), source=str(config_path))
    section = values.get("checkpoint", {})
    if not isinstance(section, dict):
        raise ConfigError(f"{config_path}: checkpoint: a group of settings was expected")
    config = decode(CheckpointConfig, values=section if keep is None else section | {"keep": keep}, source=str(config_path))
    best = config.keep_best
    scores = (lambda: read_scores(folder.parent / METRICS, metric=best.metric)) if best is not None else dict
    return RetentionPolicy.from_config(config, scores=scores)


def list_checkpoints(folders: Sequence[StepFolder], *, policy: RetentionPolicy | None) -> list[ListedCheckpoint]:
    """Each folder at a glance, in the order given."""
    siblings = list_step_folders(folders[0].path.parent)
    problems = {entry: _problem(entry) for entry in {*siblings, *folders}}
    whole = {entry.step for entry in siblings if entry.role == "committed" and problems[entry] is None}
    reasons = policy.reasons(whole) if policy is not None else {}
    return [_listed(entry, problem=problems[entry], reasons=reasons) for entry in folders]


def describe_checkpoint(path: Path) -> Description:
    """What the checkpoint at `path` says of itself and holds. Raises `CheckpointError` when it is damaged, as far as sizes tell."""
    reader = CheckpointReader(path)
    manifest = reader.manifest
    try:
        state = reader.state
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / STATE}: cannot be read ({error}); use another checkpoint") from None
    cursor = state.get("cursor", {})
    return Description(
        path=str(path),
        step=manifest.step,
        optimizer_steps=manifest.optimizer_steps,
        samples=state.get("samples"),
        created=manifest.created,
        world_size=manifest.world_size,
        zero_stage=manifest.zero_stage,
        format_version=manifest.version,
        versions=manifest.versions,
        config_hash=state.get("config_hash"),
        schedule=state.get("schedule"),
        data={key: value for key, value in cursor.items() if key != "consumed"},
        num_lost_samples=len(state.get("lost", [])),
        num_bytes=_total_bytes(manifest),
        num_parameters=sum(math.prod(shape) for shape in reader.shapes("weight").values()),
        files=tuple(entry.model_dump() for entry in manifest.files),
        tensors=_tensors(reader),
    )


def verify_folder(entry: StepFolder, *, report: Callable[[int], None] | None = None) -> Verified:
    """Read every byte of a checkpoint folder. `report` is told the bytes so far."""
    if entry.role == "partial":
        return Verified(path=str(entry.path), step=entry.step, state="unfinished", problem="its save did not finish", num_bytes=0)
    try:
        manifest = verify(entry.path, report=report)
        CheckpointReader(entry.path)  # that the pieces of all ranks tile every tensor
    except CheckpointError as error:
        return Verified(path=str(entry.path), step=entry.step, state="damaged", problem=str(error), num_bytes=0)
    return Verified(path=str(entry.path), step=entry.step, state="whole", problem=None, num_bytes=_total_bytes(manifest))


def bytes_to_verify(folders: Collection[StepFolder]) -> int:
    """How many bytes `verify_folder` will read of these, as far as their manifests can be read."""
    total = 0
    for entry in folders:
        try:
            total += _total_bytes(read_manifest(entry.path)) if entry.role != "partial" else 0
        except CheckpointError:
            continue
    return total


def _foreign_in(folder: Path) -> list[Path]:
    return list(find_foreign(folder)) if folder.is_dir() else []


def _problem(entry: StepFolder) -> str | None:
    if entry.role == "partial":
        return "its save did not finish, or goes on"
    return why_unusable(entry)


def _listed(entry: StepFolder, *, problem: str | None, reasons: dict[int, tuple[str, ...]]) -> ListedCheckpoint:
    manifest = _try_manifest(entry.path)
    state: Literal["whole", "damaged", "unfinished", "replaced"] = "whole" if problem is None else "damaged"
    if entry.role != "committed":
        state = "unfinished" if entry.role == "partial" else "replaced"
    return ListedCheckpoint(
        path=str(entry.path),
        step=entry.step,
        state=state,
        problem=problem,
        num_bytes=_folder_bytes(entry.path),
        samples=_try_samples(entry.path),
        created=None if manifest is None else manifest.created,
        world_size=None if manifest is None else manifest.world_size,
        zero_stage=None if manifest is None else manifest.zero_stage,
        kept_because=reasons.get(entry.step, ()) if state == "whole" else (),
    )


def _try_manifest(path: Path) -> Manifest | None:
    try:
        return read_manifest(path)
    except CheckpointError:
        return None


def _try_samples(path: Path) -> int | None:
    try:
        samples = json.loads((path / STATE).read_bytes())["samples"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return samples if isinstance(samples, int) else None


def _folder_bytes(path: Path) -> int:
    total = 0
    for file in path.rglob("*"):
        try:
            total += file.lstat().st_size if not file.is_dir() else 0
        except OSError:  # deleted as we look: a run that goes on may do that
            continue
    return total


def _total_bytes(manifest: Manifest) -> int:
    return sum(entry.bytes for entry in manifest.files)


def _tensors(reader: CheckpointReader) -> tuple[DescribedTensor, ...]:
    kinds = sorted(reader.kinds, key=lambda kind: (kind != "weight", kind))
    held = {kind: reader.shapes(kind) for kind in kinds}
    names = sorted({name for shapes in held.values() for name in shapes})
    described = []
    for name in names:
        having = tuple(kind for kind in kinds if name in held[kind])
        shape = held[having[0]][name]
        num_bytes = ELEMENT_BYTES * math.prod(shape) * len(having)
        described.append(DescribedTensor(name=name, shape=shape, dtype="float32", kinds=having, num_bytes=num_bytes))
    return tuple(described)
