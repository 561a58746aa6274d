"""Names and numbers of classes."""

import pytest

from vitscale.config import DataError
from vitscale_data_tools.labels import NO_CLASS, listed_labels, single_labels


def test_names_are_numbered_in_sorted_order() -> None:
    named = single_labels(["b", "a", None, "b", "7"], where="t")
    assert (named.classes, named.has_names) == (("7", "a", "b"), True)
    assert named.labels.values.tolist() == [2, 1, NO_CLASS, 2, 0]
    assert single_labels(["--5", "7"], where="t").classes == ("--5", "7")


@pytest.mark.parametrize("values", [[3, 0, None], ["3", "0", None], ["03", "000", None]])
def test_numbers_are_their_own_index(values: list[str | int | None]) -> None:
    named = single_labels(values, where="t")
    assert (named.classes, named.has_names) == (("0", "1", "2", "3"), False)
    assert named.labels.values.tolist() == [3, 0, NO_CLASS]


def test_lists_are_sorted_sets() -> None:
    named = listed_labels([["b", "a", "b"], [], ["c"]], where="t")
    assert [named.labels.of(i).tolist() for i in range(3)] == [[0, 1], [], [2]]
    assert named.classes == ("a", "b", "c")
    assert [listed_labels([[5, 2], []], where="t").labels.of(i).tolist() for i in range(2)] == [[2, 5], []]


@pytest.mark.parametrize(
    ("values", "message"),
    [([-1, 2], "t: -1 is no class index"), ([1 << 20], "is no class index"), ([None], "not one sample has a class"), ([], "not one")],
)
def test_what_is_no_class(values: list[int | None], message: str) -> None:
    with pytest.raises(DataError, match=message):
        single_labels(values, where="t")
