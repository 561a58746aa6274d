"""The hash against its definition, what it withstands on a picture, and the search against trying all pairs."""

import io
import itertools
import math

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale_data_tools import perceptual_hash as module
from vitscale_data_tools.perceptual_hash import MAX_DISTANCE, distances, near_pairs, near_pairs_within, perceptual_hash


def picture(seed: int, *, size: tuple[int, int] = (160, 120)) -> np.ndarray:
    """A smooth random colour image, as photographs are: low frequencies are strongest. uint8 (H, W, 3)."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.array(PIL.Image.fromarray(small).resize(size, PIL.Image.Resampling.BICUBIC))


def near(a: np.ndarray, b: np.ndarray) -> int:
    return bits(hashed(a), hashed(b))


def hashed(image: np.ndarray) -> int:
    value = perceptual_hash(image)
    assert value is not None
    return value


def bits(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def test_the_definition_on_a_picture_of_32_pixels() -> None:
    """A double sum, coefficient by coefficient; such a picture is its own thumbnail."""
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)

    def coefficient(k: int, m: int) -> float:
        return sum(
            int(grey[y, x]) * math.cos(math.pi * k * (2 * y + 1) / 64) * math.cos(math.pi * m * (2 * x + 1) / 64)
            for y in range(32)
            for x in range(32)
        )

    values = [coefficient(k, m) for k in range(1, 9) for m in range(1, 9)]
    median = np.median(values)
    expected = sum(1 << place for place, value in enumerate(values) if value > median)
    assert perceptual_hash(grey[:, :, None]) == expected
    assert expected.bit_count() == 32


@pytest.mark.parametrize("seed", range(5))
def test_what_it_withstands_and_what_not(seed: int) -> None:
    image = picture(seed)
    pil = PIL.Image.fromarray(image)
    jpeg = io.BytesIO()
    pil.save(jpeg, "JPEG", quality=40)
    assert near(image, np.array(PIL.Image.open(jpeg))) <= 2
    assert near(image, np.array(pil.resize((80, 60), PIL.Image.Resampling.BICUBIC))) <= 2
    assert near(image, np.clip(image.astype(int) + 12, 0, 255).astype(np.uint8)) <= 3
    assert near(image, np.array(pil.convert("L"))[:, :, None]) <= 1
    others = [near(image, picture(other)) for other in range(100, 130)]
    assert min(others) > MAX_DISTANCE
    assert 26 < np.mean(others) < 38


@pytest.mark.parametrize("value", [0, 127, 255])
def test_an_image_without_contrast_has_no_hash(value: int) -> None:
    assert perceptual_hash(np.full((50, 40, 3), value, np.uint8)) is None


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), min_size=1))
def test_distances_count_bits(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(values, np.uint64) for values in zip(*pairs, strict=True))
    assert distances(a, b).tolist() == [bits(x, y) for x, y in pairs]


@settings(deadline=None, max_examples=30)
@given(
    centres=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    flips=st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 63), max_size=8)), max_size=25),
    max_distance=st.integers(0, MAX_DISTANCE),
)
def test_no_pair_is_missed_and_none_is_wrong(centres: list[int], flips: list[tuple[int, list[int]]], max_distance: int) -> None:
    near_centres = [centres[number % len(centres)] ^ sum(1 << bit for bit in set(places)) for number, places in flips]
    values = sorted({*centres, *near_centres})
    half = len(values) // 2
    for queries, base in ((values, values), (values[:half], values[half:]), (values[half:], values[:half])):
        found = near_pairs(np.array(queries, np.uint64), np.array(base, np.uint64), max_distance=max_distance)
        expected = [
            [i, j] for i, j in itertools.product(range(len(queries)), range(len(base))) if bits(queries[i], base[j]) <= max_distance
        ]
        assert found.tolist() == expected


@pytest.mark.parametrize("max_distance", [1, 3, 6])
def test_many_more_hashes_need_little_more_work_each(max_distance: int) -> None:
    """Comparing all pairs takes 300 times as long for each of 3e8 hashes as for each of 1e6."""

    def work(count: int) -> float:
        num_blocks = module._num_blocks(count, count, max_distance=max_distance)
        return module._cost(num_blocks, num_queries=count, num_others=count, max_distance=max_distance) / count

    assert work(300_000_000) < 6 * work(1_000_000)


def test_a_search_in_many_blocks_finds_what_all_pairs_show(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    centres = random.integers(0, 2**64 - 1, 20, dtype=np.uint64)
    flips = np.bitwise_or.reduce(np.uint64(1) << random.integers(0, 64, (400, 5), dtype=np.uint64), axis=1)
    values = np.unique(centres[random.integers(0, 20, 400)] ^ flips)
    expected = [[i, j] for i, j in itertools.combinations(range(len(values)), 2) if bits(int(values[i]), int(values[j])) <= 6]
    assert len(expected) > 50
    for num_blocks in (7, 9, 11):
        monkeypatch.setattr(module, "_num_blocks", lambda *_, count=num_blocks, **__: count)
        assert near_pairs_within(values, max_distance=6).tolist() == expected


def test_chunks_of_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.unique(np.random.default_rng(1).integers(0, 2**20, 300, dtype=np.uint64))
    whole = near_pairs(values, values, max_distance=6)
    monkeypatch.setattr("vitscale_data_tools.perceptual_hash._CANDIDATES_AT_ONCE", 50)
    assert np.array_equal(near_pairs(values, values, max_distance=6), whole)
    assert len(whole) > len(values)
