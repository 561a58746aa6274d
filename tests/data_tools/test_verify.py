"""Whatever is done to a data set's files, a full check finds it and names the samples that are lost; nothing else is blamed."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.packed import pack, pack_images
from tests.data_tools.foreign import photo_samples, write_tar
from vitscale.data.dataset import Dataset, open_dataset, open_unchecked
from vitscale.data.index import encode_index, index_name
from vitscale.data.manifest import MANIFEST_NAME, encode_manifest
from vitscale.data.reader import SampleReader
from vitscale.data.storage.storage import LocalStorage
from vitscale.data.types import LostSample, UnreachableDataError
from vitscale_data_tools.index_dataset import IndexRequest, plan_index, write_index
from vitscale_data_tools.verify import VerifyReport, verify_dataset, write_report


def verify(folder: Path, **options: object) -> VerifyReport:
    dataset = open_unchecked(folder)
    progress = [0]
    report = verify_dataset(dataset, report=progress.append, **options)  # type: ignore[arg-type]
    assert progress[-1] == dataset.num_samples
    assert [shard.name for shard in report.shards] == [shard.name for shard in dataset.shards]
    return report


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack_images(folder, num_samples=60, samples_per_shard=20)
    return folder


def copy(packed: Path, folder: Path) -> Path:
    for file in packed.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("options", [{}, {"decodes": True}, {"fraction": 0.3}, {"fraction": 0.0}])
def test_a_sound_data_set(packed: Path, options: dict[str, object]) -> None:
    report = verify(packed, **options)
    assert report.is_sound
    assert report.num_damaged == 0
    checked = [shard.num_checked for shard in report.shards]
    assert all(count == 20 for count in checked) if options.get("fraction") is None else all(1 <= count < 20 for count in checked)


def test_a_foreign_data_set_with_an_index_elsewhere(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", photo_samples(9))
    write_index(plan_index(IndexRequest(source=str(tmp_path / "in"), output=tmp_path / "out")))
    assert verify(tmp_path / "out").is_sound


@pytest.mark.dist
def test_several_processes_find_the_same(packed: Path, tmp_path: Path) -> None:
    copy(packed, tmp_path)
    (tmp_path / "train-00001.tar").write_bytes((packed / "train-00001.tar").read_bytes()[:9000])
    one, two = verify(tmp_path, workers=1), verify(tmp_path, workers=2)
    assert one.shards == two.shards
    assert not one.is_sound


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found_and_its_sample_named(packed: Path, tmp_path: Path, position: float, bit: int) -> None:
    """Also behind the last sample, where no run would ever see it."""
    copy(packed, tmp_path)
    raw = bytearray((packed / "train-00001.tar").read_bytes())
    place = int(position * len(raw))
    raw[place] ^= 1 << bit
    (tmp_path / "train-00001.tar").write_bytes(raw)
    report = verify(tmp_path)
    assert [bool(shard.findings) for shard in report.shards] == [False, True, False]
    dataset = open_dataset(tmp_path)
    table = dataset.read_index(dataset.shards[1])
    hit = [20 + row for row, (offset, length, _) in enumerate(table.tolist()) if offset <= place < offset + length]
    assert report.num_damaged == len(hit)
    assert all(any(f"sample {sample_id} " in finding for finding in report.shards[1].findings) for sample_id in hit)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True))
def test_any_cut_is_found_and_what_is_left_is_told(packed: Path, tmp_path: Path, position: float) -> None:
    copy(packed, tmp_path)
    raw = (packed / "train-00002.tar").read_bytes()
    cut = int(position * len(raw))
    (tmp_path / "train-00002.tar").write_bytes(raw[:cut])
    report = verify(tmp_path)
    assert [bool(shard.findings) for shard in report.shards] == [False, False, True]
    table = open_unchecked(tmp_path).read_index(open_unchecked(tmp_path).shards[2])
    assert report.num_damaged == sum(offset + length > cut for offset, length, _ in table.tolist())


def missing_tar(folder: Path) -> None:
    (folder / "train-00001.tar").unlink()


def missing_index(folder: Path) -> None:
    (folder / "train-00001.tar.idx.npy").unlink()


def other_index(folder: Path) -> None:
    (folder / "train-00001.tar.idx.npy").write_bytes((folder / "train-00000.tar.idx.npy").read_bytes())


def swapped_tar(folder: Path) -> None:
    (folder / "train-00001.tar").write_bytes((folder / "train-00000.tar").read_bytes())


def forged_index(folder: Path) -> None:
    """An index that the manifest vouches for, with a row that names no sample."""
    dataset = open_dataset(folder)
    shard = dataset.shards[1]
    table = dataset.read_index(shard).copy()
    table["crc32"][3] ^= np.uint32(1)
    raw = encode_index(table)
    (folder / index_name(shard.name)).write_bytes(raw)
    forged = shard.model_copy(update={"index_sha256": hashlib.sha256(raw).hexdigest()})
    shards = (dataset.shards[0], forged, dataset.shards[2])
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(dataset.manifest.model_copy(update={"shards": shards})))


@pytest.mark.parametrize(
    ("spoil", "message", "num_damaged"),
    [
        (missing_tar, "train-00001.tar: cannot be read: No such file", 20),
        (missing_index, "train-00001.tar.idx.npy: cannot be read: No such file", 20),
        (other_index, "train-00001.tar.idx.npy: changed since the data set was packed", 20),
        (swapped_tar, "its sha256 is", 20),
        (forged_index, "its index does not fit: 1 rows name no sample, the first is row 3", 1),
    ],
)
def test_files_that_are_not_those_of_the_manifest(packed: Path, tmp_path: Path, spoil: object, message: str, num_damaged: int) -> None:
    copy(packed, tmp_path)
    spoil(tmp_path)  # type: ignore[operator]
    report = verify(tmp_path)
    assert [bool(shard.findings) for shard in report.shards] == [False, True, False]
    assert message in report.shards[1].findings[0]
    assert report.num_damaged == num_damaged


def test_images_that_cannot_be_decoded_are_found_on_request(tmp_path: Path) -> None:
    pack(tmp_path, [{"jpg": b"\xff\xd8\xffnot a picture", "cls": b"1"}, {"txt": b"no picture", "cls": b"1"}], samples_per_shard=2)
    assert verify(tmp_path).is_sound
    report = verify(tmp_path, decodes=True)
    assert report.num_damaged == 1
    assert "'000000'" in report.shards[0].findings[0]


def test_a_share_finds_a_share(packed: Path, tmp_path: Path) -> None:
    """Every sample of a shard is damaged: whichever are chosen show it; the choice is the same each time."""
    copy(packed, tmp_path)
    raw = bytearray((packed / "train-00001.tar").read_bytes())
    raw[512::1024] = bytes(value ^ 1 for value in raw[512::1024])
    (tmp_path / "train-00001.tar").write_bytes(raw)
    report = verify(tmp_path, fraction=0.3)
    assert report.num_damaged == report.shards[1].num_checked > 0
    assert report.shards == verify(tmp_path, fraction=0.3).shards


@pytest.mark.parametrize("method", ["size", "read_range"])
def test_a_store_that_does_not_answer_is_no_damage(packed: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Else a network that is down would be reported, and remembered, as a data set that is lost."""

    def silent(*_: object, **__: object) -> None:
        raise UnreachableDataError("no answer")

    monkeypatch.setattr(LocalStorage, method, silent)
    with pytest.raises(UnreachableDataError):
        verify(packed)


@pytest.mark.parametrize("options", [{}, {"decodes": True}, {"fraction": 0.5}])
def test_progress_shows_within_a_shard_and_ends_with_it(tmp_path: Path, options: dict[str, object]) -> None:
    dataset = pack_images(tmp_path, num_samples=300, samples_per_shard=300)
    for damage in (False, True):
        if damage:
            (tmp_path / "train-00000.tar").write_bytes((tmp_path / "train-00000.tar").read_bytes()[:-9000])
        progress: list[int] = []
        verify_dataset(dataset, report=progress.append, **options)  # type: ignore[arg-type]
        assert len({done for done in progress if 0 < done < 300}) >= 2
        assert progress == sorted(progress)
        assert progress[-1] == 300


def test_long_lists_of_findings_are_cut(tmp_path: Path) -> None:
    pack_images(tmp_path, num_samples=40, samples_per_shard=40)
    (tmp_path / "train-00000.tar").write_bytes(bytes((tmp_path / "train-00000.tar").stat().st_size))
    (shard,) = verify(tmp_path).shards
    assert shard.num_damaged == 40
    assert len(shard.findings) == 21
    assert shard.findings[-1] == "train-00000.tar: 21 more."


def test_the_report_as_json(packed: Path, tmp_path: Path) -> None:
    write_report(verify(packed), tmp_path / "r.json")
    values = json.loads((tmp_path / "r.json").read_text())
    assert values["is_sound"] is True
    assert [shard["num_checked"] for shard in values["shards"]] == [20, 20, 20]


def lost(dataset: Dataset) -> int:
    """Samples that a run could not read."""
    return sum(isinstance(sample, LostSample) for sample in SampleReader(dataset).scan(0, dataset.num_samples, epoch=0))


def test_damaged_is_what_a_run_would_lose(packed: Path, tmp_path: Path) -> None:
    copy(packed, tmp_path)
    raw = bytearray((packed / "train-00000.tar").read_bytes())
    for place in range(700, len(raw), 4099):
        raw[place] ^= 16
    (tmp_path / "train-00000.tar").write_bytes(raw)
    assert verify(tmp_path).num_damaged == lost(open_dataset(tmp_path)) > 3
