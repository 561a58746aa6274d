"""What is left out is gone, what stays is bitwise the same, the tars are not touched, and damage is dropped only on request."""

from pathlib import Path

import pytest

from tests.data.packed import pack_images
from tests.data_tools.foreign import photo_samples, write_tar
from vitscale.config import DataError, UsageError
from vitscale.data.dataset import Dataset, open_dataset, open_unchecked
from vitscale.data.reader import SampleReader
from vitscale_data_tools.exclude import ExcludeSummary, exclude_samples
from vitscale_data_tools.index_dataset import IndexRequest, plan_index, write_index
from vitscale_data_tools.verify import verify_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    (tmp_path / "in").mkdir()
    return pack_images(tmp_path / "in", num_samples=30, samples_per_shard=10)


def contents(dataset: Dataset) -> dict[str, dict[str, bytes]]:
    samples = SampleReader(dataset).read(0, dataset.num_samples)
    return {sample.key: {name: bytes(view) for name, view in sample.members.items()} for sample in samples}


def exclude(dataset: Dataset, *keys: str, output: Path | None, damaged: bool = False) -> ExcludeSummary:
    progress: list[int] = []
    summary = exclude_samples(dataset, keys=frozenset(keys), drops_damaged=damaged, output=output, report=progress.append)
    assert progress[-1] == dataset.num_samples
    return summary


def test_the_rest_is_the_same(dataset: Dataset, tmp_path: Path) -> None:
    before = contents(dataset)
    gone = {"000000", "000007", "000019", *(f"{number:06d}" for number in range(20, 30))}
    summary = exclude(dataset, *gone, "other", output=tmp_path / "out")
    left = open_dataset(tmp_path / "out")
    assert contents(left) == {key: members for key, members in before.items() if key not in gone}
    assert contents(open_dataset(tmp_path / "in")) == before
    assert [shard.num_samples for shard in left.shards] == [8, 9]
    assert (summary.num_listed, summary.num_damaged, summary.unknown_keys) == (13, 0, ("other",))
    assert left.manifest.source["excluded"] == 13
    assert left.manifest.source["excluded_from"] == dataset.sha256
    assert left.classes == dataset.classes
    assert verify_dataset(left).is_sound


def test_twice_is_the_same_as_both(dataset: Dataset, tmp_path: Path) -> None:
    exclude(dataset, "000001", output=tmp_path / "one")
    exclude(open_dataset(tmp_path / "one"), "000002", output=tmp_path / "two")
    exclude(dataset, "000001", "000002", output=tmp_path / "both")
    assert contents(open_dataset(tmp_path / "two")) == contents(open_dataset(tmp_path / "both"))
    assert open_dataset(tmp_path / "two").manifest.shards_root == str(tmp_path / "in")


def test_foreign_keys_with_spaces_and_long_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", photo_samples(6))
    write_index(plan_index(IndexRequest(source=str(tmp_path / "in"), output=tmp_path / "index")))
    keys = list(photo_samples(6))
    exclude(open_dataset(tmp_path / "index"), keys[2], output=tmp_path / "out")
    assert list(contents(open_dataset(tmp_path / "out"))) == keys[:2] + keys[3:]


def test_without_an_output_nothing_is_written(dataset: Dataset, tmp_path: Path) -> None:
    assert exclude(dataset, "000003", output=None).manifest.num_samples == 29
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_damage_stops_it_or_is_left_out(dataset: Dataset, tmp_path: Path) -> None:
    tar = tmp_path / "in" / "train-00001.tar"
    table = dataset.read_index(dataset.shards[1])
    raw = bytearray(tar.read_bytes()[: int(table[8]["offset"]) + 700])
    raw[int(table[2]["offset"]) + 600] ^= 1
    tar.write_bytes(raw)
    opened = open_unchecked(tmp_path / "in")
    with pytest.raises(DataError, match=r"sample 12 .* is damaged.* add --damaged"):
        exclude(opened, output=tmp_path / "out")
    summary = exclude(opened, "000010", damaged=True, output=tmp_path / "out")
    assert (summary.num_listed, summary.num_damaged) == (1, 3)
    left = open_dataset(tmp_path / "out")
    expected = {f"{number:06d}" for number in range(30)} - {"000010", "000012", "000018", "000019"}
    assert set(contents(left)) == expected


def test_nothing_left(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not one sample would be left"):
        exclude(dataset, *(f"{number:06d}" for number in range(30)), output=tmp_path / "out")


def test_a_data_set_is_not_overwritten(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        exclude(dataset, "000001", output=tmp_path / "in")
