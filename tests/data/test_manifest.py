"""The manifest's bytes are a function of its content, and every way to spoil them is refused with a reason."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from vitscale.config import DataError
from vitscale.data.manifest import Manifest, Shard, decode_manifest, encode_manifest


def manifest(**changes: Any) -> Manifest:
    shard = Shard(name="train-00000.tar", bytes=2048, num_samples=3, sha256="a" * 64, index_sha256="b" * 64)
    values: dict[str, Any] = {
        "split": "train",
        "num_samples": 3,
        "classes": ("cat", "dög"),
        "members": ("cls", "png"),
        "shards": (shard,),
        "source": {"kind": "image-folder", "seed": 0},
    }
    return Manifest(**{**values, **changes})


@pytest.mark.parametrize("changes", [{}, {"classes": None}, {"split": None}])
def test_round_trip(changes: dict[str, Any]) -> None:
    original = manifest(**changes)
    assert decode_manifest(encode_manifest(original), path="m") == original


def test_bytes_do_not_depend_on_the_order_of_keys() -> None:
    assert encode_manifest(manifest(source={"a": 1, "b": 2})) == encode_manifest(manifest(source={"b": 2, "a": 1}))


def _with_digest(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A manifest changed by someone who knows how to mend the digest."""
    values = json.loads(encode_manifest(manifest()))
    del values["digest"]
    change(values)
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps({**values, "digest": digest}).encode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b"[1]", "not the manifest of a packed data set"),
        (b'{"shards": {}}', "not the manifest of a packed data set"),
        (_with_digest(lambda v: v.update(version=2)), "format version 2, this vitscale reads version 1"),
        (encode_manifest(manifest()).replace(b'"cat"', b'"cow"'), "edited or damaged"),
        (encode_manifest(manifest()).replace(b'"digest"', b'"digets"'), "edited or damaged"),
        (_with_digest(lambda v: v.update(num_samples=4)), "num_samples is 4, but the shards hold 3"),
        (_with_digest(lambda v: v.update(shards=[])), "shards: "),
        (_with_digest(lambda v: v.update(colour="red")), "colour: "),
        (_with_digest(lambda v: v["shards"][0].update(name="../x.tar")), r"shards.0.name: "),
        (_with_digest(lambda v: v["shards"][0].update(bytes="2048")), r"shards.0.bytes: "),
        (_with_digest(lambda v: v.update(shards=v["shards"] * 2, num_samples=6)), "two shards have the same name"),
    ],
)
def test_a_spoilt_manifest_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        decode_manifest(raw, path="data/manifest.json")
    assert str(error.value).startswith("data/manifest.json: ")
    assert "\n" not in str(error.value)
