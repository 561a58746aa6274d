"""Which samples go, against a plain search over all pairs: exact before near, evaluation sets before the own one, the first stays."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale_data_tools.fingerprints import FINGERPRINT_DTYPE, Fingerprints
from vitscale_data_tools.matches import OWN_SET, Match, find_matches

ROWS = st.tuples(
    st.integers(0, 5), st.integers(0, 4), st.sampled_from([0, 1, 3, 7, 15, 2**40, 2**40 + 1, 2**63 + 2**20]), st.integers(0, 9)
)


def table(rows: list[tuple[int, int, int, int]]) -> Fingerprints:
    """(bytes, pixels, pHash, state): images of equal bytes have equal pixels and hashes; 0 is unreadable, 1 without contrast."""
    made = np.zeros(len(rows), FINGERPRINT_DTYPE)
    by_bytes: dict[int, tuple[int, int, int]] = {}
    by_pixels: dict[int, tuple[int, int]] = {}
    for number, (data, pixels, perceptual, state) in enumerate(rows):
        pixels, perceptual, state = by_bytes.setdefault(data, (pixels, perceptual, state))
        if state:
            perceptual, state = by_pixels.setdefault(pixels, (perceptual, max(1, state)))
        made[number] = (number, data, 1, pixels if state else 0, 2, perceptual if state > 1 else 0, state > 0, state > 1)
    return made


def alike(a: np.void, b: np.void, *, max_distance: int) -> tuple[str, int] | None:
    if a["bytes_high"] == b["bytes_high"]:
        return "bytes", 0
    if a["is_readable"] and b["is_readable"] and a["pixels_high"] == b["pixels_high"]:
        return "pixels", 0
    distance = (int(a["perceptual"]) ^ int(b["perceptual"])).bit_count()
    return ("near", distance) if a["has_contrast"] and b["has_contrast"] and distance <= max_distance else None


def check(match: Match, own: Fingerprints, others: list[Fingerprints], *, max_distance: int) -> None:
    other = own if match.other_set == OWN_SET else others[match.other_set]
    assert alike(own[match.sample_id], other[match.other_id], max_distance=max_distance) == (match.kind, match.distance)


SETTINGS = settings(deadline=None, max_examples=60)


@SETTINGS
@given(
    rows=st.lists(ROWS, max_size=9),
    others=st.lists(st.lists(ROWS, max_size=4), max_size=2),
    max_distance=st.integers(0, 4),
    within=st.booleans(),
)
def test_every_match_is_one_and_what_stays_has_none(
    rows: list[tuple[int, int, int, int]], others: list[list[tuple[int, int, int, int]]], max_distance: int, within: bool
) -> None:
    everything = table([row for part in [rows, *others] for row in part])
    own = everything[: len(rows)]
    tables = np.split(everything[len(rows) :], np.cumsum([len(part) for part in others])[:-1]) if others else []
    matches = find_matches(own, against=tables, max_distance=max_distance, compares_own=within)
    gone = {match.sample_id for match in matches}
    assert [match.sample_id for match in matches] == sorted(gone)
    for match in matches:
        check(match, own, tables, max_distance=max_distance)
        # A copy may name one that goes itself; what goes for mere resemblance goes for one that stays.
        assert match.other_set != OWN_SET or match.other_id < match.sample_id
        assert match.other_set != OWN_SET or match.kind != "near" or match.other_id not in gone
    stays = [number for number in range(len(rows)) if number not in gone]
    for number in stays:
        assert not any(alike(own[number], row, max_distance=max_distance) for other in tables for row in other)
        if within:
            assert not any(alike(own[number], own[other], max_distance=max_distance) for other in stays if other != number)


def near_rows(hashes: list[int]) -> Fingerprints:
    made = np.zeros(len(hashes), FINGERPRINT_DTYPE)
    for number, value in enumerate(hashes):
        made[number] = (number, number, 0, number, 0, value, True, True)
    return made


def test_a_chain_loses_every_other_link_not_all_but_one() -> None:
    matches = find_matches(near_rows([0b0, 0b1, 0b11, 0b111]), against=[], max_distance=1, compares_own=True)
    assert [(match.sample_id, match.other_id) for match in matches] == [(1, 0), (3, 2)]


def test_many_copies_make_one_match_each() -> None:
    """Placeholders for images that are gone: in number of pairs they would be quadratic."""
    matches = find_matches(near_rows([5] * 20_000), against=[], max_distance=6, compares_own=True)
    assert len(matches) == 19_999
    assert {match.other_id for match in matches} == {0}


def test_the_nearest_of_an_evaluation_set_is_named() -> None:
    own = near_rows([0b111])
    own["bytes_high"], own["pixels_high"] = 99, 99
    matches = find_matches(own, against=[near_rows([0b0, 0b110, 0b1])], max_distance=3, compares_own=True)
    assert matches == [Match(sample_id=0, kind="near", distance=1, other_set=0, other_id=1)]


def test_images_without_contrast_are_not_near_each_other() -> None:
    own = near_rows([0, 0])
    own["has_contrast"] = False
    assert find_matches(own, against=[own], max_distance=6, compares_own=True) != []
    own["bytes_high"], own["pixels_high"] = [7, 8], [9, 10]
    assert find_matches(own, against=[], max_distance=6, compares_own=True) == []
