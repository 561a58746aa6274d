"""Parts cover a data set once, shares are stable and about as large as asked, and a failed fetch costs only what is gone."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.packed import pack_images
from vitscale.data.dataset import Dataset, open_unchecked
from vitscale.data.reader import SampleReader
from vitscale.data.types import RawSample
from vitscale.dist.seeding import counter_key, mix
from vitscale_data_tools.samples import Part, chosen, parts, scan_chosen


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pack_images(tmp_path_factory.mktemp("d"), num_samples=23, samples_per_shard=9)


@given(size=st.integers(1, 40))
def test_parts_cover_everything_once(dataset: Dataset, size: int) -> None:
    found = parts(dataset, samples_per_part=size)
    assert [number for part in found for number in range(part.first, part.stop)] == list(range(23))


@given(first=st.integers(0, 10**12), length=st.integers(1, 300), fraction=st.floats(0, 1))
def test_a_share_is_rising_stable_and_never_empty(first: int, length: int, fraction: float) -> None:
    part = Part(first=first, stop=first + length)
    numbers = list(chosen(part, fraction=fraction, purpose="p"))
    assert numbers == sorted(set(numbers)) == list(chosen(part, fraction=fraction, purpose="p"))
    assert numbers
    assert all(part.first <= number < part.stop for number in numbers)


@given(first=st.integers(0, 10**12), length=st.integers(1, 50), fraction=st.floats(0.01, 1, exclude_max=True))
def test_a_share_is_drawn_sample_by_sample(first: int, length: int, fraction: float) -> None:
    drawn = [number for number in range(first, first + length) if mix(counter_key("p") ^ number) < fraction * 2**64]
    found = list(chosen(Part(first=first, stop=first + length), fraction=fraction, purpose="p"))
    assert found == drawn if drawn else len(found) == 1


def test_a_share_is_about_as_large_as_asked_and_differs_by_purpose() -> None:
    part = Part(first=0, stop=100_000)
    one, two = (set(chosen(part, fraction=0.1, purpose=purpose)) for purpose in ("a", "b"))
    assert len(one) == pytest.approx(10_000, rel=0.05)
    assert len(one & two) == pytest.approx(1_000, rel=0.2)


@given(numbers=st.sets(st.integers(0, 22)).map(sorted))
def test_chosen_samples_come_in_order(dataset: Dataset, numbers: list[int]) -> None:
    samples = scan_chosen(SampleReader(dataset), numbers)
    assert [sample.sample_id for sample in samples] == numbers
    assert all(isinstance(sample, RawSample) for sample in samples)


def test_a_failed_fetch_loses_only_what_is_gone(dataset: Dataset, tmp_path: Path) -> None:
    for file in Path(dataset.storage.root).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    raw = (tmp_path / "train-00001.tar").read_bytes()
    table = dataset.read_index(dataset.shards[1])
    (tmp_path / "train-00001.tar").write_bytes(raw[: int(table[4]["offset"]) + 1])
    samples = scan_chosen(SampleReader(open_unchecked(tmp_path)), range(23))
    assert [sample.sample_id for sample in samples if not isinstance(sample, RawSample)] == [13, 14, 15, 16, 17]
