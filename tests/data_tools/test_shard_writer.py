"""One shard: what is written is what the indexer finds, and unusable samples are counted to the end."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitscale.data.index import build_index, decode_index, index_name
from vitscale.data.ustar import parse_sample
from vitscale_data_tools.shard_writer import ShardJob, ShardResult, sample_tar_bytes, write_shard
from vitscale_data_tools.split import IntArray, LabelledImage, UnusableImageError


@dataclass(frozen=True, kw_only=True)
class FakeSplit:
    """Samples of the given sizes; a negative one is unusable."""

    sizes: tuple[int, ...]
    name: str | None = None
    classes: tuple[str, ...] = ("a",)
    notes: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        return len(self.sizes)

    @property
    def description(self) -> dict[str, str | int]:
        return {}

    def image_bytes(self) -> IntArray:
        return np.array(self.sizes)

    def origin(self, index: int) -> str:
        return f"file {index}"

    def read(self, index: int) -> LabelledImage:
        if self.sizes[index] < 0:
            raise UnusableImageError("spoilt")
        return LabelledImage(label=index % 3, extension="jpg" if index % 2 else "png", image=bytes([index]) * self.sizes[index])

    def take(self, indices: IntArray) -> "FakeSplit":
        return FakeSplit(sizes=tuple(self.sizes[i] for i in indices))


def write(folder: Path, sizes: tuple[int, ...], advance: Callable[[int], None] = lambda _: None) -> ShardResult:
    split = FakeSplit(sizes=sizes)
    job = ShardJob(path=folder / "s-00000.tar", split=split, source_indices=np.arange(len(sizes)) + 40, key_prefix="train-")
    return write_shard(job, advance=advance)


def test_the_index_is_the_one_that_a_scan_of_the_tar_gives(tmp_path: Path) -> None:
    result = write(tmp_path, (0, 1, 511, 512, 513, 100_000))
    assert result.shard is not None
    raw = (tmp_path / "s-00000.tar").read_bytes()
    table = decode_index((tmp_path / index_name("s-00000.tar")).read_bytes(), shard=result.shard, path="i")
    scanned = build_index(tmp_path / "s-00000.tar")
    assert table.tolist() == scanned.table.tolist()
    assert scanned.keys == tuple(f"train-{40 + i:09d}" for i in range(6))
    assert result.extensions == scanned.members == {"cls", "jpg", "png"}
    assert (result.shard.bytes, result.shard.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    offset, length, _ = table.tolist()[4]
    assert bytes(parse_sample(memoryview(raw)[offset : offset + length])[1]["cls"]) == b"1"


def test_sizes_are_known_beforehand(tmp_path: Path) -> None:
    sizes = (0, 1, 511, 512, 513, 5000)
    result = write(tmp_path, sizes)
    assert result.shard is not None
    assert result.shard.bytes == sample_tar_bytes(np.array(sizes)).sum() + 1024


def test_unusable_samples_are_all_counted_and_some_named(tmp_path: Path) -> None:
    result = write(tmp_path, (1, -1, 1, *[-1] * 8))
    assert result.shard is None
    assert result.num_unusable == 9
    assert result.unusable == tuple(f"file {i} (spoilt)" for i in (1, 3, 4, 5, 6))


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    write(tmp_path, (1, 2, 3), advance=told.append)
    assert sum(told) == 3
