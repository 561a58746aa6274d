"""Saving a checkpoint on all ranks so that it exists whole or not at all, whatever dies on the way.

Everything is written into `step-N.tmp`, hashed and synced; the manifest comes last; one rename commits. A process that is
killed at any point leaves the older checkpoints as they were.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from vitscale.checkpoint.durable import create_folder, disk_errors, rename_durably, sync_folder, write_durably
from vitscale.checkpoint.fragment_file import read_pieces, write_fragments
from vitscale.checkpoint.fragments import ShardStore
from vitscale.checkpoint.layout import CONFIG, MANIFEST, STATE, rank_file, step_folder
from vitscale.checkpoint.manifest import FileEntry, Manifest, encode_manifest
from vitscale.checkpoint.reader import assemble
from vitscale.config import CheckpointError
from vitscale.dist.agreement import on_every_rank, on_main
from vitscale.dist.ranks import current_ranks

_RECORDED_VERSIONS = ("vitscale", "torch", "deepspeed", "numpy")


def save_checkpoint(store: ShardStore, *, folder: Path, step: int, state: dict[str, Any], config_text: str) -> Path:
    """Write the checkpoint of `step` into the checkpoints directory `folder` and return its path. Collective.

    Every rank writes what it owns; rank 0 adds `state` (plain JSON, its own copy counts) and the configuration, checks that
    the pieces of all ranks tile every tensor, and commits. An older checkpoint of the same step is replaced.
    Raises `CheckpointError` on all ranks when any of them fails; nothing is committed then.
    """
    ranks = current_ranks()
    partial = step_folder(folder, step=step, role="partial")
    try:
        on_main(lambda: _prepare(partial))
        entries = on_every_rank(lambda: _write_rank(partial / rank_file(ranks.rank), store=store))
        manifest = Manifest(
            step=step,
            optimizer_steps=store.optimizer_steps(),
            world_size=ranks.world_size,
            zero_stage=store.zero_stage,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=_versions(),
            files=tuple(FileEntry(**entry) for entry in entries),
        )
        on_main(lambda: _commit(partial, manifest=manifest, state=state, config_text=config_text))
    except CheckpointError as error:
        if ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise error.retold(
            f"the checkpoint of step {step} could not be saved: {error}. Older checkpoints are untouched;"
            f" see that {folder} is writable and has space"
        ) from error
    return step_folder(folder, step=step)


def _prepare(partial: Path) -> None:
    with disk_errors():
        if partial.exists():  # left behind by a process that died while saving this step
            shutil.rmtree(partial)
        create_folder(partial)


def _write_rank(path: Path, *, store: ShardStore) -> dict[str, Any]:
    try:
        with disk_errors():
            return write_fragments(path, fragments=store.owned()).model_dump()
    except CheckpointError as error:
        # A write that fails on a full disk does not know its file.
        raise CheckpointError(f"{path.name}: {error}") from error


def _commit(partial: Path, *, manifest: Manifest, state: dict[str, Any], config_text: str) -> None:
    assemble(piece for entry in manifest.rank_files() for piece in read_pieces(partial / entry.name))
    state_text = json.dumps(state, indent=1, sort_keys=True, allow_nan=False) + "\n"
    with disk_errors():
        entries = [_write_text(partial / STATE, state_text), _write_text(partial / CONFIG, config_text)]
        manifest = manifest.model_copy(update={"files": (*manifest.files, *entries)})
        write_durably(partial / MANIFEST, encode_manifest(manifest))
        sync_folder(partial)
        _put_in_place(partial, step=manifest.step)


def _put_in_place(partial: Path, *, step: int) -> None:
    final = step_folder(partial.parent, step=step)
    replaced = step_folder(partial.parent, step=step, role="replaced")
    if final.exists():
        # A folder with content cannot be renamed over. Between the two renames `replaced` still counts as a checkpoint.
        shutil.rmtree(replaced, ignore_errors=True)
        rename_durably(final, replaced)
    rename_durably(partial, final)
    shutil.rmtree(replaced, ignore_errors=True)


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
