"""Reading by range against WebDataset's and Python's own readers, and damage: every flipped bit and every cut is found."""

import hashlib
import os
import pickle
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.fault_proxy import FaultProxy, Status
from tests.data.packed import pack, pack_images
from tests.data.range_server import RangeServer
from vitscale.config import DataError
from vitscale.data.dataset import Dataset, open_dataset
from vitscale.data.index import encode_index, index_name
from vitscale.data.reader import SampleReader
from vitscale.data.storage.storage import LocalStorage
from vitscale.data.types import LostSample, RawSample, UnreachableDataError

NUM_SAMPLES = 23


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    random = np.random.default_rng(3)
    samples = [{"png": random.bytes(int(random.integers(1, 1500))), "cls": str(i % 10).encode()} for i in range(NUM_SAMPLES)]
    return pack(tmp_path, samples, samples_per_shard=9)


def contents(samples: list[RawSample]) -> list[tuple[str, dict[str, bytes]]]:
    return [(sample.key, {name: bytes(view) for name, view in sample.members.items()}) for sample in samples]


def test_equal_to_the_webdataset_library(dataset: Dataset, tmp_path: Path) -> None:
    urls = [str(tmp_path / shard.name) for shard in dataset.shards]
    theirs = [
        (sample["__key__"], {name: value for name, value in sample.items() if not name.startswith("__")})
        for sample in webdataset.WebDataset(urls, shardshuffle=False)
    ]
    assert contents(SampleReader(dataset).read(0, NUM_SAMPLES)) == theirs


def test_equal_to_tarfile(dataset: Dataset, tmp_path: Path) -> None:
    members = {}
    for shard in dataset.shards:
        with tarfile.open(tmp_path / shard.name) as archive:
            members.update({member.name: archive.extractfile(member).read() for member in archive})  # type: ignore[union-attr]
    ours = contents(SampleReader(dataset).read(0, NUM_SAMPLES))
    assert {f"{key}.{name}": data for key, sample in ours for name, data in sample.items()} == members


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(bounds=st.tuples(st.integers(0, NUM_SAMPLES), st.integers(0, NUM_SAMPLES)).map(sorted))
def test_a_range_is_that_part_of_the_whole(dataset: Dataset, bounds: list[int]) -> None:
    first, stop = bounds
    samples = SampleReader(dataset).read(first, stop, epoch=4)
    assert contents(samples) == contents(SampleReader(dataset).read(0, NUM_SAMPLES))[first:stop]
    assert [sample.sample_id for sample in samples] == list(range(first, stop))
    assert {sample.epoch for sample in samples} <= {4}
    assert [sample.shard for sample in samples] == [f"train-{i // 9:05d}.tar" for i in range(first, stop)]


def test_one_read_per_shard(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    original = type(dataset.storage).read_range

    def counted(self: object, name: str, *, offset: int, length: int) -> bytes:
        names.append(name)
        return original(self, name, offset=offset, length=length)  # type: ignore[arg-type]

    monkeypatch.setattr(type(dataset.storage), "read_range", counted)
    SampleReader(dataset).read(5, 20)
    assert names == ["train-00000.tar", "train-00001.tar", "train-00002.tar"]


def test_pickle(dataset: Dataset) -> None:
    reader = pickle.loads(pickle.dumps(SampleReader(dataset)))
    assert contents(reader.read(8, 10)) == contents(SampleReader(dataset).read(8, 10))


def test_every_flipped_bit_of_a_sample_is_found(dataset: Dataset, tmp_path: Path) -> None:
    """The size stays the same, so opening cannot notice; 400 flips over headers, payloads and paddings."""
    tar = tmp_path / dataset.shards[0].name
    raw = bytearray(tar.read_bytes())
    table = dataset.read_index(dataset.shards[0])
    end_of_samples = int(table["offset"][-1] + table["length"][-1])
    flips = np.random.default_rng(0).choice(end_of_samples * 8, size=400, replace=False)
    reader = SampleReader(open_dataset(tmp_path))
    for flip in flips.tolist():
        raw[flip // 8] ^= 1 << flip % 8
        tar.write_bytes(raw)
        damaged = int(np.searchsorted(table["offset"], flip // 8, side="right")) - 1
        with pytest.raises(DataError, match=rf"{tar.name}: sample {damaged} \(byte \d+\) is damaged: its bytes changed"):
            reader.read(0, 9)
        raw[flip // 8] ^= 1 << flip % 8
    tar.write_bytes(raw)
    assert len(reader.read(0, 9)) == 9


def test_a_damaged_payload_names_its_key_and_the_remedy(dataset: Dataset, tmp_path: Path) -> None:
    tar = tmp_path / dataset.shards[1].name
    raw = bytearray(tar.read_bytes())
    raw[512] ^= 1
    tar.write_bytes(raw)
    with pytest.raises(DataError, match=r"sample 9 \(byte 0\).*\(key 000009\)\. Restore the shard") as error:
        SampleReader(dataset).read(7, 12)
    assert error.value.exit_code == 10
    assert len(SampleReader(dataset).read(10, 18)) == 8, "its neighbours stay readable"


def test_a_shard_cut_after_opening_is_found(dataset: Dataset, tmp_path: Path) -> None:
    tar = tmp_path / dataset.shards[0].name
    raw = tar.read_bytes()
    table = dataset.read_index(dataset.shards[0])
    end_of_samples = int(table["offset"][-1] + table["length"][-1])
    for cut in range(0, end_of_samples, 97):
        tar.write_bytes(raw[:cut])
        with pytest.raises(DataError, match=rf"{tar.name}: cut short"):
            SampleReader(dataset).read(0, 9)


def test_an_index_that_fits_the_manifest_but_not_the_tar(dataset: Dataset, tmp_path: Path) -> None:
    """Made to mislead: index and manifest agree, the crc is right, yet the range spans two samples."""
    table = dataset.read_index(dataset.shards[2]).copy()
    raw = (tmp_path / dataset.shards[2].name).read_bytes()

    table["length"][3] += table["length"][4]
    start, end = int(table["offset"][3]), int(table["offset"][3] + table["length"][3])
    table["crc32"][3] = zlib.crc32(raw[start:end])
    table["offset"][4], table["length"][4] = end, 512
    encoded = encode_index(table)
    (tmp_path / index_name(dataset.shards[2].name)).write_bytes(encoded)
    shard = dataset.shards[2].model_copy(update={"index_sha256": hashlib.sha256(encoded).hexdigest()})
    manifest = dataset.manifest.model_copy(update={"shards": (*dataset.shards[:2], shard)})
    crafted = replace(dataset, manifest=manifest, sha256="")
    with pytest.raises(DataError, match=r"sample 21 .* members of two samples"):
        SampleReader(crafted).read(21, 22)


def test_a_store_that_does_not_answer_loses_nothing(tmp_path: Path) -> None:
    """What lies there is whole: to train on other samples instead would change the run."""
    dataset = pack_images(tmp_path, num_samples=20)

    class Silent(LocalStorage):
        def read_range(self, name: str, *, offset: int, length: int) -> bytes:  # noqa: ARG002
            raise UnreachableDataError("s3://bucket: could not be read: 14 tries in 61.0 s failed")

    reader = SampleReader(replace(dataset, storage=Silent(tmp_path)))
    with pytest.raises(UnreachableDataError, match="14 tries"):
        list(reader.scan(0, 5, epoch=0))


@pytest.mark.usefixtures("dataset")
def test_credentials_that_expire_lose_nothing(tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with RangeServer(files) as server, FaultProxy(server.port) as proxy:
        reader = SampleReader(open_dataset(proxy.url))
        assert len(list(reader.scan(0, 9, epoch=0))) == 9
        proxy.inject([Status(403, b"")])
        with pytest.raises(UnreachableDataError, match="HTTP 403"):
            list(reader.scan(0, 9, epoch=0))
        proxy.inject([Status(404, b"")])
        assert [type(sample) for sample in reader.scan(0, 9, epoch=0)] == [LostSample] * 9


def test_a_descriptor_that_someone_else_closed_loses_nothing(dataset: Dataset, tmp_path: Path) -> None:
    """A bug of any library in the process may do that; the number then names whatever is opened next."""
    reader = SampleReader(dataset)
    expected = contents(reader.read(0, 9))
    (number,) = [fd for fd in os.listdir("/proc/self/fd") if _target(fd) == str(tmp_path / dataset.shards[0].name)]
    (tmp_path / "other").write_bytes(bytes(10**6))
    other = os.open(tmp_path / "other", os.O_RDONLY)
    os.dup2(other, int(number))
    os.close(other)
    assert contents(reader.read(0, 9)) == expected
    assert reader.io_counters()["retries"] == 9


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        return ""
