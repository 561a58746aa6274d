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


@pytest.mark.parametrize("changes", [{}, {"classes": None}, {"split": None}, {"shards_root": "s3://bucket/train"}])
def test_round_trip(changes: dict[str, Any]) -> None:
    original = manifest(**changes)
    assert decode_manifest(encode_manifest(original), path="m") == original


def test_bytes_do_not_depend_on_the_order_of_keys() -> None:
    assert encode_manifest(manifest(source={"a": 1, "b": 2})) == encode_manifest(manifest(source={"b": 2, "a": 1}))


def test_a_data_set_that_holds_its_tars_says_nothing_about_where_they_lie() -> None:
    """Its digest, by which checkpoints know it, is the one from before tars could lie elsewhere."""
    raw = encode_manifest(manifest())
    assert b"shards_root" not in raw
    assert json.loads(raw)["digest"] == "7ddbc76d28e812468414a90e33492f09d19555d70d7fe83aba9ca07c7d02da6d"
    assert b'"shards_root": "/tars"' in encode_manifest(manifest(shards_root="/tars"))


@pytest.mark.parametrize("name", ["a.tar", "part-0/000001.tar", "date=2024,a+b@c/x.y.tar"])
def test_names_of_shards(name: str) -> None:
    shard = manifest().shards[0].model_copy(update={"name": name})
    assert decode_manifest(encode_manifest(manifest(shards=(shard,))), path="m").shards[0].name == name


BAD_NAMES = ["../a.tar", "a/../b.tar", "/a.tar", "a//b.tar", ".a.tar", "a/.b.tar", "a.tgz", "a b.tar", "a.tar/", "a\n.tar"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    shard = manifest().shards[0].model_copy(update={"name": name})
    with pytest.raises(DataError, match=r"shards\.0\.name"):
        decode_manifest(encode_manifest(manifest().model_copy(update={"shards": (shard,)})), path="m")


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
