"""Labels, captions and keys of a split, and the space that its samples take."""

from dataclasses import dataclass

import numpy as np

from vitscale.data.ustar import member_bytes
from vitscale_data_tools.split import IntArray, Labels, Record, Split, member_tar_bytes, multi_labels, some

LISTS = [[3, 17, 42], [], [0], [], [5, 100]]


@dataclass(frozen=True, kw_only=True)
class Blanks:
    """Images of the given sizes."""

    sizes: IntArray

    def tar_bytes(self) -> IntArray:
        return member_tar_bytes(self.sizes)

    def origin(self, index: int) -> str:
        return f"blank of {self.sizes[index]}"

    def read(self, index: int) -> Record:
        return Record(image=bytes(int(self.sizes[index])))

    def take(self, indices: IntArray) -> "Blanks":
        return Blanks(sizes=self.sizes[indices])

    def identity(self) -> bytes:
        return self.sizes.tobytes()


def split_of(labels: Labels | None, captions: tuple[str | None, ...] | None = None) -> Split:
    return Split(images=Blanks(sizes=np.array([0, 1, 512, 513, 9])), numbers=np.arange(5), labels=labels, captions=captions)


def test_multi_labels_are_written_with_spaces_between() -> None:
    labels = multi_labels(LISTS)
    assert [labels.payload(i) for i in range(5)] == [b"3 17 42", b"", b"0", b"", b"5 100"]
    assert [labels.of(i).tolist() for i in range(5)] == LISTS
    assert labels.payload_bytes().tolist() == [7, 0, 1, 0, 5]
    assert [labels.take(np.array([4, 1, 0])).of(i).tolist() for i in range(3)] == [LISTS[4], [], LISTS[0]]


def test_single_labels() -> None:
    labels = Labels(values=np.array([7, 12, 0]))
    assert [labels.payload(i) for i in range(3)] == [b"7", b"12", b"0"]
    assert labels.payload_bytes().tolist() == [1, 2, 1]
    assert labels.take(np.array([2])).values.tolist() == [0]


def test_mapping_drops_what_becomes_negative_from_lists_only() -> None:
    new_index = np.array([-1, 0, 9])
    assert Labels(values=np.array([0, 1, 2])).mapped(new_index).values.tolist() == [-1, 0, 9]
    mapped = multi_labels([[0, 1], [], [0], [2, 1]]).mapped(new_index)
    assert [mapped.of(i).tolist() for i in range(4)] == [[0], [], [], [9, 0]]


def test_space_in_a_tar_is_that_of_the_members() -> None:
    captions = ("a", None, "ü" * 400, "", "x" * 512)
    split = split_of(multi_labels([list(range(300)), *LISTS[1:]]), captions)
    for index in range(5):
        members = {"jpg": split.images.read(index).image, **split.members(index)}
        assert split.tar_bytes()[index] == sum(len(member_bytes(f"k.{name}", payload=payload)) for name, payload in members.items())


def test_members_of_each_kind() -> None:
    assert split_of(None).members(0) == {}
    split = split_of(Labels(values=np.arange(5)), ("a", None, "ü", "", "b"))
    assert split.members(1) == {"cls": b"1"}
    assert split.members(2) == {"cls": b"2", "txt": "ü".encode()}
    taken = split.take(np.array([2, 0]))
    assert [taken.members(i) for i in range(2)] == [split.members(2), split.members(0)]
    assert [taken.key(i) for i in range(2)] == ["000000002", "000000000"]


def test_many_names_are_cut_short() -> None:
    assert some(list("abcde")) == "a, b, c, d, e"
    assert some(list("abcdefg")) == "a, b, c, d, e and 2 more"
