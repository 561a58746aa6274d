"""manifest.json: what a packed data set consists of, written with the same bytes for the same content and read with suspicion."""

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from vitscale.config import Config, DataError

MANIFEST_NAME = "manifest.json"
FORMAT = "vitscale-shards"
VERSION = 1

_REMEDY = "Restore the file from a copy or pack the data set again."

SHARD_NAME = r"^(?:[A-Za-z0-9_=+,@-][A-Za-z0-9._=+,@-]*/)*[A-Za-z0-9_=+,@-][A-Za-z0-9._=+,@-]*\.tar$"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Shard(Config):
    """One tar file of the data set."""

    name: str = Field(pattern=SHARD_NAME)
    """Path below the folder of the tars, with slashes; no part starts with a dot."""
    bytes: int = Field(ge=1)
    """Size of the tar."""
    num_samples: int = Field(ge=1)
    sha256: Sha256
    """Of the tar."""
    index_sha256: Sha256
    """Of the sidecar index."""


class Manifest(Config):
    """A packed data set. Samples are numbered through the shards in the order of this list."""

    format: Literal["vitscale-shards"] = "vitscale-shards"
    version: Literal[1] = 1
    split: str | None
    """"train", "test" and the like, where the source tells them apart."""
    num_samples: int = Field(ge=1)
    classes: tuple[str, ...] | None
    """Name of each class in label order; null where samples have no class."""
    members: tuple[str, ...] = Field(min_length=1)
    """Extensions that occur, sorted: `cls`, `jpg`, ..."""
    shards: tuple[Shard, ...] = Field(min_length=1)
    source: dict[str, str | int]
    """What the data set was packed from, and how."""
    shards_root: Annotated[str, Field(min_length=1)] | None = None
    """Folder or address where the tars lie; null, and left out of the file, where they lie beside the manifest."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        counted = sum(shard.num_samples for shard in self.shards)
        if counted != self.num_samples:
            raise ValueError(f"num_samples is {self.num_samples}, but the shards hold {counted}")
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("two shards have the same name")
        return self


def encode_manifest(manifest: Manifest) -> bytes:
    """The file's bytes: sorted keys, and a digest over all the rest, so that an edit by hand is noticed."""
    values = manifest.model_dump(mode="json")
    if values["shards_root"] is None:  # data sets that hold their own tars keep the bytes and the digest that they have
        del values["shards_root"]
    return (json.dumps({**values, "digest": _digest(values)}, indent=2, sort_keys=True) + "\n").encode("ascii")


def decode_manifest(raw: bytes, *, path: str) -> Manifest:
    """Read the bytes of the manifest at `path`. Raises `DataError` for another format or version, an edit, or damage."""
    try:
        values = json.loads(raw)
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON ({error}). {_REMEDY}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(
            f"{path}: not the manifest of a packed data set (format is not {FORMAT!r}). Pack the data with `vitscale-data pack`."
        )
    if values.get("version") != VERSION:
        raise DataError(
            f"{path}: format version {values.get('version')!r}, this vitscale reads version {VERSION}. "
            "Read it with the vitscale that wrote it, or pack the data set again."
        )
    if values.pop("digest", None) != _digest(values):
        raise DataError(f"{path}: edited or damaged since the data set was packed (its digest does not match). {_REMEDY}")
    try:
        return Manifest.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise DataError(f"{path}: {_explain(error)}. {_REMEDY}") from None


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def _explain(error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"]) or "manifest"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {first['msg'].removeprefix('Value error, ')}{more}"
