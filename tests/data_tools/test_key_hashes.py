"""Duplicate keys over shards against a plain count, also when hashes collide and however the hashes' range is sliced."""

import hashlib
import resource
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale_data_tools import key_hashes
from vitscale_data_tools.atomic import replace_array
from vitscale_data_tools.key_hashes import Place, StoredTables, duplicate_keys, find_duplicates, key_hash, key_table

SHARDS = st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1), min_size=1, max_size=5)


def found(shards: list[list[str]], *, hashes_at_once: int) -> dict[str, set[tuple[int, int]]]:
    tables = [key_table(keys) for keys in shards]
    duplicates = duplicate_keys(tables, read_key=lambda place: shards[place.table][place.row], hashes_at_once=hashes_at_once)
    return {duplicate.key: {(place.table, place.row) for place in duplicate.places} for duplicate in duplicates}


def expected(shards: list[list[str]]) -> dict[str, set[tuple[int, int]]]:
    counts = Counter(key for keys in shards for key in keys)
    return {
        key: {(number, keys.index(key)) for number, keys in enumerate(shards) if key in keys} for key, count in counts.items() if count > 1
    }


@given(shards=SHARDS, hashes_at_once=st.sampled_from([1, 3, 100]))
def test_every_duplicate_is_found_with_its_places(shards: list[list[str]], hashes_at_once: int) -> None:
    assert found(shards, hashes_at_once=hashes_at_once) == expected(shards)


@given(shards=SHARDS)
def test_a_collision_is_no_duplicate(shards: list[list[str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_hashes, "key_hash", lambda key: (1 << 64) - 1 - ord(key) % 2)
        assert found(shards, hashes_at_once=100) == expected(shards)


def test_keys_are_read_only_where_hashes_agree() -> None:
    asked: list[Place] = []

    def read_key(place: Place) -> str:
        asked.append(place)
        return "b"

    tables = [key_table(["a", "b"]), key_table(["c", "b"])]
    assert len(list(duplicate_keys(tables, read_key=read_key))) == 1
    assert sorted((place.table, place.row) for place in asked) == [(0, 1), (1, 1)]


def test_the_hash_is_the_same_for_ever() -> None:
    assert key_hash("a/ü") == 13058400916923876079
    assert key_hash("a/\udcff") == int.from_bytes(hashlib.blake2b(b"a/\xff", digest_size=8).digest(), "little")


def test_the_first_are_named_and_all_are_counted() -> None:
    asked: list[Place] = []
    shards = [[f"{number:03d}" for number in range(300)], ["x"], [f"{number:03d}" for number in range(100, 300)]]

    def read_key(place: Place) -> str:
        asked.append(place)
        return shards[place.table][place.row]

    found = find_duplicates(
        [key_table(keys) for keys in shards], read_key=read_key, name_place=lambda place: f"{place.table}.tar", num_named=3
    )
    assert found.count == 200
    assert len(found.sentences) == 3
    assert all(sentence[0] == "'" and sentence.endswith("' in 0.tar and 2.tar") for sentence in found.sentences)
    assert len(asked) == 2 * 3, "millions of keys are not read one by one"


def test_more_tables_than_a_process_may_have_files_open(tmp_path: Path) -> None:
    paths = []
    for number in range(200):
        paths.append(tmp_path / f"{number}.npy")
        replace_array(paths[-1], key_table([f"own {number}", "same" if number in (3, 190) else f"other {number}"]))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
    try:
        (found,) = duplicate_keys(StoredTables(paths), read_key=lambda _: "same", hashes_at_once=50)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [place.table for place in found.places] == [3, 190]
