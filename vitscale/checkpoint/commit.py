"""What a save does on disk, in this order: an empty partial folder, the part of every rank, the manifest, one rename.

A process that is killed at any point leaves the older checkpoints as they were. Nothing here is collective.
"""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from vitscale.checkpoint.durable import create_folder, disk_errors, rename_durably, sync_folder, write_durably
from vitscale.checkpoint.fragment_file import read_pieces, write_fragments
from vitscale.checkpoint.fragments import Fragment
from vitscale.checkpoint.layout import CONFIG, MANIFEST, STATE, rank_file, step_folder
from vitscale.checkpoint.manifest import FileEntry, Manifest, encode_manifest
from vitscale.checkpoint.reader import assemble, check_size
from vitscale.config import CheckpointError

_RECORDED_VERSIONS = ("vitscale", "torch", "deepspeed", "numpy")


@dataclass(frozen=True, kw_only=True)
class SaveContent:
    """What a checkpoint holds besides the fragments."""

    step: int
    optimizer_steps: int
    zero_stage: int
    state_text: str
    config_text: str


def encode_state(state: dict[str, Any]) -> str:
    """The text of state.json: equal for equal values. Raises `ValueError` for what JSON cannot hold."""
    return json.dumps(state, indent=1, sort_keys=True, allow_nan=False) + "\n"


def prepare(partial: Path) -> None:
    """Make the folder that a save is written into. Raises `CheckpointError`, also where it is there already."""
    with disk_errors():
        create_folder(partial.parent)
        partial.mkdir()
        try:
            sync_folder(partial.parent)
        except OSError:
            discard(partial)
            raise


def write_part(partial: Path, *, rank: int, fragments: Iterable[Fragment], given_up: threading.Event) -> FileEntry:
    """Write one rank's file durably. Raises `CheckpointError` naming the file, also once `given_up` is set."""
    path = partial / rank_file(rank)
    try:
        with disk_errors():
            return write_fragments(path, fragments=fragments, given_up=given_up)
    except CheckpointError as error:
        # A write that fails on a full disk does not know its file.
        raise CheckpointError(f"{path.name}: {error}") from error


def commit(partial: Path, *, content: SaveContent, parts: Sequence[FileEntry], check_owner: Callable[[], None]) -> int:
    """Check that the ranks' parts tile every tensor, write the rest and give the checkpoint its name; its size in bytes.

    An older checkpoint of the same step is replaced. `check_owner` raises `CheckpointError` where the run directory has another
    owner by now; it is asked before the manifest is written and before the rename.
    """
    for part in parts:
        check_size(partial / part.name, expected=part.bytes)
    assemble(piece for part in parts for piece in read_pieces(partial / part.name))
    with disk_errors():
        texts = (_write_text(partial / STATE, content.state_text), _write_text(partial / CONFIG, content.config_text))
        manifest = Manifest(
            step=content.step,
            optimizer_steps=content.optimizer_steps,
            world_size=len(parts),
            zero_stage=content.zero_stage,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=_versions(),
            files=(*parts, *texts),
        )
        check_owner()
        write_durably(partial / MANIFEST, encode_manifest(manifest))
        sync_folder(partial)
        check_owner()
        put_in_place(partial, step=content.step)
    return sum(entry.bytes for entry in manifest.files)


def discard(partial: Path) -> None:
    """Remove what an unsuccessful save has written, as far as the disk lets us; a later save removes the rest."""
    shutil.rmtree(partial, ignore_errors=True)


def put_in_place(partial: Path, *, step: int) -> Path:
    """Give the finished folder its final name, in the place of an older checkpoint of the step, and return its path."""
    final = step_folder(partial.parent, step=step)
    replaced = step_folder(partial.parent, step=step, role="replaced")
    if final.exists():
        # A folder with content cannot be renamed over. Between the two renames `replaced` still counts as a checkpoint.
        shutil.rmtree(replaced, ignore_errors=True)
        rename_durably(final, replaced)
    rename_durably(partial, final)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def _write_text(path: Path, text: str) -> FileEntry:
    data = text.encode()
    write_durably(path, data)
    return FileEntry(name=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _versions(distributions: Sequence[str] = _RECORDED_VERSIONS) -> dict[str, str]:
    found = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a source tree, or not needed on this machine
            continue
    return found
