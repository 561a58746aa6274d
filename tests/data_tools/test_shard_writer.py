"""One shard: what is written is what the indexer finds, unusable samples are left out and told, and only a whole shard is recorded."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.data.scanned import scan_tar
from tests.data_tools.images import animated_webp, image_bytes, rotated_jpeg
from vitscale.data.index import decode_index, index_name
from vitscale.data.ustar import parse_sample
from vitscale_data_tools.images import ImagePolicy, Transcode
from vitscale_data_tools.shard_writer import ShardJob, ShardResult, SkippedSample, recorded_result, write_shard
from vitscale_data_tools.split import IntArray, Labels, Record, Split, UnusableImageError, member_tar_bytes
from vitscale_data_tools.staging import Staging

NAME = "train/s-00000.tar"


@dataclass(frozen=True, kw_only=True)
class FakeImages:
    """The given files; None cannot be read."""

    files: tuple[bytes | None, ...]

    def tar_bytes(self) -> IntArray:
        return member_tar_bytes(np.array([len(data or b"") for data in self.files]))

    def origin(self, index: int) -> str:
        return f"file {index}"

    def read(self, index: int) -> Record:
        data = self.files[index]
        if data is None:
            raise UnusableImageError("spoilt")
        return Record(image=data, extension="jpg" if index % 2 else "png", members={"json": b"{}"} if index == 3 else {})

    def take(self, indices: IntArray) -> "FakeImages":
        return FakeImages(files=tuple(self.files[i] for i in indices))

    def identity(self) -> bytes:
        return b""


def staging_in(folder: Path) -> Staging:
    staging = Staging(root=folder)
    for path in (staging.contents / "train", staging.records, staging.scratch):
        path.mkdir(parents=True, exist_ok=True)
    return staging


def job_in(folder: Path, files: tuple[bytes | None, ...], *, is_sound: bool = True, policy: ImagePolicy | None = None) -> ShardJob:
    split = Split(
        images=FakeImages(files=files),
        numbers=np.arange(len(files)) + 40,
        labels=Labels(values=np.arange(len(files)) % 3),
        key_prefix="train-",
        is_sound=is_sound,
    )
    return ShardJob(name=NAME, split=split, policy=policy or ImagePolicy(), staging=staging_in(folder))


def write(folder: Path, files: tuple[bytes | None, ...], advance: Callable[[int], None] = lambda _: None) -> ShardResult:
    return write_shard(job_in(folder, files), advance=advance)


def blanks(*sizes: int) -> tuple[bytes, ...]:
    return tuple(bytes([size % 256]) * size for size in sizes)


def test_the_index_is_the_one_that_a_scan_of_the_tar_gives(tmp_path: Path) -> None:
    result = write(tmp_path, blanks(0, 1, 511, 512, 513, 100_000))
    path = tmp_path / "contents" / NAME
    assert result.shard is not None
    raw = path.read_bytes()
    table = decode_index(path.with_name(index_name(path.name)).read_bytes(), shard=result.shard, path="i")
    scanned = scan_tar(path)
    assert table.tolist() == scanned.table.tolist()
    assert scanned.keys == tuple(f"train-{40 + i:09d}" for i in range(6))
    assert set(result.extensions) == scanned.members == {"cls", "jpg", "json", "png"}
    assert (result.shard.bytes, result.shard.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    offset, length, _ = table.tolist()[4]
    assert bytes(parse_sample(memoryview(raw)[offset : offset + length])[1]["cls"]) == b"1"
    assert list((tmp_path / "scratch").iterdir()) == []


def test_sizes_are_known_beforehand(tmp_path: Path) -> None:
    job = job_in(tmp_path, blanks(0, 1, 511))
    result = write_shard(job, advance=lambda _: None)
    assert result.shard is not None
    assert result.shard.bytes == job.split.tar_bytes().sum() + 1024


def test_unusable_samples_are_left_out_and_told(tmp_path: Path) -> None:
    result = write(tmp_path, (b"1", None, b"2", None))
    assert result.skipped == tuple(SkippedSample(origin=f"file {i}", reason="spoilt") for i in (1, 3))
    assert scan_tar(tmp_path / "contents" / NAME).keys == ("train-000000040", "train-000000042")
    assert result.num_samples == 4


def test_a_shard_of_which_nothing_is_left_has_no_files(tmp_path: Path) -> None:
    result = write(tmp_path, (None, None))
    assert (result.shard, result.num_samples) == (None, 2)
    assert list((tmp_path / "contents" / "train").iterdir()) == []
    assert recorded_result(staging_in(tmp_path), NAME) == result


def test_images_are_checked_named_by_their_bytes_and_their_traits_counted(tmp_path: Path) -> None:
    files = (image_bytes(0), rotated_jpeg(1, orientation=3), animated_webp(), b"no image")
    result = write_shard(job_in(tmp_path, files, is_sound=False), advance=lambda _: None)
    assert result.traits == {"animated": 1, "misnamed": 2, "rotated": 1}
    assert result.extensions == ("cls", "jpg", "webp")
    assert [sample.reason for sample in result.skipped] == ["not a JPEG, PNG or WebP image"]


def test_images_made_here_are_transcoded_too(tmp_path: Path) -> None:
    policy = ImagePolicy(transcode=Transcode())
    result = write_shard(job_in(tmp_path, (image_bytes(0, file_format="PNG"),), policy=policy), advance=lambda _: None)
    assert result.extensions == ("cls", "jpg")


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    write(tmp_path, (b"1", None, b"3"), advance=told.append)
    assert sum(told) == 3


def test_a_record_gives_the_result_again(tmp_path: Path) -> None:
    result = write(tmp_path, (b"1", None, b"2"))
    assert recorded_result(staging_in(tmp_path), NAME) == result
    assert recorded_result(staging_in(tmp_path), "train/other.tar") is None


@pytest.mark.parametrize("damage", ["tar cut", "tar gone", "index gone", "record cut", "record of another version"])
def test_what_is_not_whole_counts_as_not_written(tmp_path: Path, damage: str) -> None:
    write(tmp_path, (b"1", b"2"))
    staging = staging_in(tmp_path)
    path, (record,) = staging.contents / NAME, staging.records.iterdir()
    match damage:
        case "tar cut":
            os.truncate(path, 512)
        case "tar gone":
            path.unlink()
        case "index gone":
            path.with_name(index_name(path.name)).unlink()
        case "record cut":
            record.write_bytes(record.read_bytes()[:-5])
        case _:
            record.write_text('{"name": "train/s-00000.tar", "skipped": [], "shard": null, "extensions": []}')
    assert recorded_result(staging, NAME) is None


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_error_leaves_no_record_and_no_scratch(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space"):
            write(tmp_path, (b"1", b"2"))
    staging = staging_in(tmp_path)
    assert recorded_result(staging, NAME) is None
    assert list(staging.scratch.glob("*.idx.npy")) == list(staging.scratch.glob("*.tar*")) == []
    # The next attempt writes over whatever is there.
    assert write(tmp_path, (b"1", b"2")).shard is not None
