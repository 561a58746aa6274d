"""One foreign tar: its record, what makes a record stale, and labels and members that are refused by name."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.scanned import scan_tar
from tests.data_tools.foreign import photo_samples, write_tar
from vitscale.data.index import decode_index, index_name
from vitscale.data.storage.storage import open_storage
from vitscale.data.types import StoredFile
from vitscale_data_tools import index_shard as module
from vitscale_data_tools.index_shard import IndexJob, ShardRecord, Unusable, index_shard, read_record
from vitscale_data_tools.key_hashes import key_table

NAME = "part/a.tar"


@pytest.fixture
def job(tmp_path: Path) -> IndexJob:
    write_tar(tmp_path / "in" / NAME, photo_samples(12))
    return IndexJob(
        storage=open_storage(tmp_path / "in"),
        file=StoredFile(name=NAME, size=0, version=""),
        output=tmp_path / "out",
        work=tmp_path / "work",
        num_classes=None,
        allow_pickles=False,
    )


def run(job: IndexJob) -> ShardRecord | Unusable:
    """Index the tar as it is now, and check that all progress adds up to its bytes."""
    job = now(job)
    progress: list[int] = []
    result = index_shard(job, progress.append)
    if isinstance(result, ShardRecord):
        assert sum(progress) == result.shard.bytes
    return result


def now(job: IndexJob) -> IndexJob:
    (file,) = job.storage.list_files(".tar")
    return replace(job, file=file)


def problem(job: IndexJob, samples: dict[str, dict[str, bytes]]) -> str:
    write_tar(Path(job.storage.root) / NAME, samples)
    result = run(job)
    assert isinstance(result, Unusable)
    return result.problem


def test_index_digest_and_members(job: IndexJob, tmp_path: Path) -> None:
    record = run(job)
    assert isinstance(record, ShardRecord)
    raw = (tmp_path / "in" / NAME).read_bytes()
    scanned = scan_tar(tmp_path / "in" / NAME)
    index = (tmp_path / "out" / index_name(NAME)).read_bytes()
    assert np.array_equal(decode_index(index, shard=record.shard, path="i"), scanned.table)
    assert (record.shard.sha256, record.shard.bytes) == (hashlib.sha256(raw).hexdigest(), len(raw))
    assert (record.members, record.num_labels, record.num_passed_over) == (("cls", "jpg", "txt"), 5, 0)
    assert np.array_equal(np.load(module.keys_path(job)), key_table(scanned.keys))


def test_a_finished_tar_is_not_read_again(job: IndexJob, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(job)
    monkeypatch.setattr(module, "_index", lambda *_: pytest.fail("read again"))
    assert run(job) == first


@pytest.mark.parametrize("spoil", ["touched", "grown", "no index", "other index", "no keys", "half a record", "other classes"])
def test_what_makes_a_record_stale(job: IndexJob, tmp_path: Path, spoil: str) -> None:
    run(job)
    tar = tmp_path / "in" / NAME
    if spoil == "touched":
        os.utime(tar, ns=(1, 1))
    elif spoil == "grown":
        stat = tar.stat()
        tar.write_bytes(tar.read_bytes() + bytes(512))
        os.utime(tar, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    elif spoil == "no index":
        (tmp_path / "out" / index_name(NAME)).unlink()
    elif spoil == "other index":
        (tmp_path / "out" / index_name(NAME)).write_bytes(b"x")
    elif spoil == "no keys":
        module.keys_path(job).unlink()
    elif spoil == "half a record":
        record = tmp_path / "work" / f"{NAME}.json"
        record.write_bytes(record.read_bytes()[:-9])
    else:
        job = replace(job, num_classes=5)
    assert read_record(now(job)) is None
    assert isinstance(run(job), ShardRecord)
    assert read_record(now(job)) is not None


@pytest.mark.parametrize("extension", ["pyd", "pickle", "features.pth", "PKL", "pt"])
def test_pickles_are_refused_by_name_unless_allowed(job: IndexJob, extension: str) -> None:
    samples = {"a": {"jpg": b"1", extension: b"\x80\x04."}}
    assert f"sample 'a' has a pickled member .{extension.lower()}" in problem(job, samples)
    record = run(replace(job, allow_pickles=True))
    assert isinstance(record, ShardRecord)
    assert extension.lower() in record.members


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"cls": b"2"}, "sample 'k' has the label '2', but --classes names the labels 0 to 1"),
        ({"cls": b"-1"}, "has the label '-1'"),
        ({"cls": b"cat"}, "has the label 'cat'"),
        ({"cls": b"9" * 40}, "has the label '99999999999999999999'"),
        ({"cls": b"0 1 2"}, "has the label '0 1 2'"),
        ({"jpg": b"x"}, "has no member .cls"),
    ],
)
def test_labels_that_class_names_do_not_cover(job: IndexJob, members: dict[str, bytes], message: str) -> None:
    assert message in problem(replace(job, num_classes=2), {"k": members})


@pytest.mark.parametrize("members", [{"cls": b"1"}, {"cls": b"0 1"}, {"cls": b""}, {"json": b"{}"}])
def test_labels_that_class_names_cover(job: IndexJob, members: dict[str, bytes]) -> None:
    """What lies in JSON is checked as it is read, by the run whose configuration says where it stands."""
    write_tar(Path(job.storage.root) / NAME, {"k": {"jpg": b"x", **members}})
    assert isinstance(run(replace(job, num_classes=2)), ShardRecord)


@pytest.mark.parametrize(
    ("labels", "count"),
    [(["3", " 7\n"], 8), (["3", "cat"], None), (["3", None], None), (["0"], 1), (["1 2", "7 0"], 8), (["", "2"], 3), ([""], None)],
)
def test_labels_are_counted_where_all_are_numbers(job: IndexJob, labels: list[str | None], count: int | None) -> None:
    samples = {str(number): {"txt": b"t"} if label is None else {"txt": b"t", "cls": label.encode()} for number, label in enumerate(labels)}
    write_tar(Path(job.storage.root) / NAME, samples)
    record = run(job)
    assert isinstance(record, ShardRecord)
    assert record.num_labels == count


def test_a_damaged_tar_is_a_sentence_not_an_exception(job: IndexJob, tmp_path: Path) -> None:
    tar = tmp_path / "in" / NAME
    tar.write_bytes(tar.read_bytes()[:5000])
    result = run(job)
    assert isinstance(result, Unusable)
    assert result.problem.startswith(f"{tar}: cut short at byte 5000")
    assert not (tmp_path / "out" / index_name(NAME)).exists()
