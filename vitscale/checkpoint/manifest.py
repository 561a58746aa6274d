"""The manifest of a checkpoint: what it is, and the size and sha256 of each of its files. Committed last."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitscale.checkpoint.layout import MANIFEST
from vitscale.config import CheckpointError

FORMAT = "vitscale-checkpoint"
VERSION = 1


class FileEntry(BaseModel):
    """A file of a checkpoint. The name is plain: a manifest cannot point outside its own folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What manifest.json holds. `world_size` and `zero_stage` tell how it was written; any other can read it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

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
    return (json.dumps({**values, "sha256": _digest(values)}, indent=1, sort_keys=True) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the checkpoint in `folder`.

    Raises `CheckpointError` when it is missing, unreadable, of something else, or of a newer version of the format.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: not a checkpoint: it has no {MANIFEST}, which a save writes last") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); use another checkpoint") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: not a checkpoint of a vitscale run: {MANIFEST} does not say format {FORMAT!r}")
    version = values.get("version")
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"{folder}: written in version {version} of the checkpoint format, and this vitscale reads up to {VERSION};"
            " install a newer vitscale to use it"
        )
    if values.pop("sha256", None) != _digest(values):
        raise CheckpointError(f"{path}: damaged: its values do not match its sha256; use another checkpoint")
    try:
        return Manifest.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: damaged: {where}: {first['msg']}; use another checkpoint") from None


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
