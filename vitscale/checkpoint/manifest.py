"""The manifest of a checkpoint: what it is, and the size and sha256 of each of its files. Committed last.

The version rises only when a reader of the one before would misread what is new. A field that may be passed over comes
without a new version: readers leave out fields that they do not know, and take a missing optional one for not recorded.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitscale.checkpoint.foreign import explain_foreign
from vitscale.checkpoint.layout import MANIFEST
from vitscale.config import CheckpointError

FORMAT = "vitscale-checkpoint"
VERSION = 1


class NewerVersionError(CheckpointError):
    """A checkpoint in a version of the format that this vitscale does not know. It is not damaged: nothing older stands in for it."""


class FileEntry(BaseModel):
    """A file of a checkpoint. The name is plain: a manifest cannot point outside its own folder."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What manifest.json holds. `world_size` and `zero_stage` tell how it was written; any other can read it."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    format: str = FORMAT
    version: int = VERSION
    step: int = Field(ge=0)
    optimizer_steps: int = Field(ge=0)
    world_size: int = Field(ge=1)
    zero_stage: int = Field(ge=0, le=3)
    created: str
    versions: dict[str, str]
    files: tuple[FileEntry, ...]

    def rank_files(self) -> tuple[FileEntry, ...]:
        """The files that hold fragments, in rank order."""
        return tuple(entry for entry in self.files if entry.name.endswith(".safetensors"))


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of manifest.json: equal for equal values. `sha256` covers all other values."""
    values = manifest.model_dump(mode="json")
    return _encode({**values, "sha256": _digest(values)})


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the checkpoint in `folder`.

    Raises `CheckpointError` when it is missing, unreadable, of something else, or of a newer version of the format.
    """
    path = folder / MANIFEST
    try:
        return parse_manifest(path.read_bytes(), where=str(path))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: not a checkpoint of vitscale: {_why_no_manifest(folder)}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); use another checkpoint") from None


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """The manifest in the bytes of a manifest.json that lies at `where`. Raises `CheckpointError` as `read_manifest` does.

    Any byte that differs from what a save wrote is noticed. Of a newer version it raises `NewerVersionError`.
    """
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: damaged: it is not JSON ({error}); use another checkpoint") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{where}: not a checkpoint of vitscale: it does not say format {FORMAT!r}")
    version = values.get("version")
    without_digest = {key: value for key, value in values.items() if key != "sha256"}
    has_digest = values.get("sha256") == _digest(without_digest)
    if isinstance(version, int) and version > VERSION:
        # A flipped bit makes another version, too, but not with the sha256 that belongs to it.
        raise (NewerVersionError if has_digest else CheckpointError)(
            f"{where}: written in version {version} of the checkpoint format, and this vitscale reads up to {VERSION};"
            " install a newer vitscale to use it"
        )
    if not has_digest or _encode(values) != data:
        raise CheckpointError(
            f"{where}: damaged, or edited by hand: its values do not match its sha256; put the file back as it was saved, or use"
            " another checkpoint"
        )
    try:
        return Manifest.model_validate_json(json.dumps(without_digest))
    except ValidationError as error:
        first = error.errors()[0]
        where_in = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{where}: damaged: {where_in}: {first['msg']}; use another checkpoint") from None


def _encode(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _why_no_manifest(folder: Path) -> str:
    return (explain_foreign(folder) if folder.is_dir() else None) or f"it has no {MANIFEST}, which a save writes last"
