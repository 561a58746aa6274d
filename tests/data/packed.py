"""Small packed data sets for the tests, written with the package's own tar, index and manifest bytes."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from tests.data.scanned import scan_tar
from vitscale.data.dataset import Dataset, open_dataset
from vitscale.data.index import encode_index, index_name
from vitscale.data.manifest import MANIFEST_NAME, Manifest, Shard, encode_manifest
from vitscale.data.ustar import END_OF_ARCHIVE, member_bytes

NUM_CLASSES = 10


def pack_images(folder: Path, *, num_samples: int, samples_per_shard: int = 50, size: int = 8) -> Dataset:
    """Random grayscale PNGs; sample i has label i % 10 and its index in its first pixels (i % 256, i // 256)."""
    random = np.random.default_rng(0)
    samples = []
    for sample_id in range(num_samples):
        pixels = random.integers(0, 256, (size, size), dtype=np.uint8)
        pixels[0, :2] = sample_id % 256, sample_id // 256
        samples.append({"cls": str(sample_id % NUM_CLASSES).encode(), "png": png_bytes(pixels)})
    return pack(folder, samples, samples_per_shard=samples_per_shard)


def pack(folder: Path, samples: Sequence[Mapping[str, bytes]], *, samples_per_shard: int) -> Dataset:
    """Write members by extension, one sample after the other, and open the result."""
    shards: list[Shard] = []
    for first in range(0, len(samples), samples_per_shard):
        name = f"train-{len(shards):05d}.tar"
        chunk = samples[first : first + samples_per_shard]
        members = [
            member_bytes(f"{first + i:06d}.{extension}", payload=payload)
            for i, sample in enumerate(chunk)
            for extension, payload in sample.items()
        ]
        raw = b"".join(members) + END_OF_ARCHIVE
        (folder / name).write_bytes(raw)
        index = encode_index(scan_tar(folder / name).table)
        (folder / index_name(name)).write_bytes(index)
        shards.append(Shard(name=name, bytes=len(raw), num_samples=len(chunk), sha256=_sha256(raw), index_sha256=_sha256(index)))
    manifest = Manifest(
        split="train",
        num_samples=len(samples),
        classes=tuple(str(label) for label in range(NUM_CLASSES)),
        members=tuple(sorted({extension for sample in samples for extension in sample})),
        shards=tuple(shards),
        source={"kind": "test"},
    )
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    return open_dataset(folder)


def png_bytes(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
