import json
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from vitscale.config import DataError
from vitscale.data.labels import ClassLabels, ClassTarget, MultiLabels, MultiTarget, read_caption
from vitscale.data.types import RawSample


def sample_of(**members: bytes) -> RawSample:
    views = {extension: memoryview(payload) for extension, payload in members.items()}
    return RawSample(sample_id=0, epoch=0, view=0, key="k", shard="train-00000.tar", members=views)


def in_json(value: Any) -> RawSample:
    return sample_of(json=json.dumps({"label": value, "width": 3}).encode(), jpg=b"")


@pytest.mark.parametrize(("text", "label"), [(b"0", 0), (b"17\n", 17), (b" 3", 3)])
def test_reads_the_class(text: bytes, label: int) -> None:
    assert ClassTarget()(sample_of(cls=text)) == {"label": label}


@pytest.mark.parametrize("text", [b"cat", b"-1", b"1.0", "\u0663".encode(), b"1" * 5000])
def test_refuses_a_label_that_is_no_class_index(text: bytes) -> None:
    with pytest.raises(DataError, match=r"train-00000.tar: the label of sample 'k' is .*, not a class index .* Pack") as caught:
        ClassTarget()(sample_of(cls=text))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("sample", [sample_of(cls=b"3 17"), sample_of(cls=b"")])
def test_says_what_to_do_where_several_classes_are_given(sample: RawSample) -> None:
    with pytest.raises(DataError, match=r"not a class index .*objective.labels.kind multi.*accuracy can be measured only on"):
        ClassTarget()(sample)


def test_refuses_a_class_beyond_those_of_the_model() -> None:
    target = ClassLabels().reader(num_classes=10)
    assert target(sample_of(cls=b"9")) == {"label": 9}
    with pytest.raises(DataError, match=r"train-00000.tar: the label of sample 'k' is 10, but the model has 10 classes \(0 to 9\)"):
        target(sample_of(cls=b"10"))


def test_refuses_a_sample_without_the_member() -> None:
    with pytest.raises(DataError, match=r"sample 'k' has no label: expected a member 'cls', found \['png'\].*`labels` of objective"):
        ClassTarget()(sample_of(png=b""))


def test_reads_the_class_of_foreign_sets() -> None:
    target = ClassLabels(member="json", field="label").reader(num_classes=10)
    assert target(in_json(7)) == {"label": 7}
    assert target(in_json("7")) == {"label": 7}
    assert ClassLabels(member="label.txt").reader(num_classes=10)(sample_of(**{"label.txt": b"2"})) == {"label": 2}
    for value in (None, True, 7.0, -1, "cat", {"id": 3}):
        with pytest.raises(DataError, match="not a class index"):
            target(in_json(value))
    with pytest.raises(DataError, match=r"is \[1, 2\], not a class index .*objective.labels.kind multi"):
        target(in_json([1, 2]))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "member 'json' of sample 'k' is not JSON"),
        (b"[1]", "has no field 'label', it has list"),
        (b'{"class": 1}', r"has no field 'label', it has \['class'\]. Name another in `labels.field`"),
        (b"\xff", "member 'json' of sample 'k' is not text in UTF-8"),
    ],
)
def test_refuses_json_without_the_field(raw: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ClassTarget(member="json", field="label")(sample_of(json=raw))


@pytest.mark.parametrize(
    ("sample", "labels"),
    [
        (sample_of(cls=b""), []),
        (sample_of(cls=b"4"), [4]),
        (sample_of(cls=b"0 3 4\n"), [0, 3, 4]),
        (sample_of(cls=b"3 3"), [3]),
    ],
)
def test_reads_any_number_of_classes(sample: RawSample, labels: list[int]) -> None:
    hot = MultiLabels().reader(num_classes=5)(sample)["labels"]
    assert hot.dtype == "uint8"
    assert hot.tolist() == [int(label in labels) for label in range(5)]


def test_reads_any_number_of_classes_of_foreign_sets() -> None:
    target = MultiLabels(member="json", field="label").reader(num_classes=5)
    for value, labels in (([], []), ([1, 3], [1, 3]), (["1", 3], [1, 3]), (2, [2]), ("0 4", [0, 4])):
        assert target(in_json(value))["labels"].nonzero()[0].tolist() == labels


def test_refuses_labels_that_are_no_class_indices() -> None:
    target = MultiTarget(num_classes=5)
    for text in (b"cat", b"1,2", b"1 -2", b"1 2.0"):
        with pytest.raises(DataError, match=r"the labels of sample 'k' are .*, not class indices separated by spaces"):
            target(sample_of(cls=text))
    with pytest.raises(DataError, match="the label of sample 'k' is 5, but the model has 5 classes"):
        target(sample_of(cls=b"1 5"))
    with pytest.raises(DataError, match="has no label: expected a member 'cls'"):
        target(sample_of(png=b""))


def test_reads_the_caption() -> None:
    assert read_caption(sample_of(txt="Ein Müller\n".encode())) == "Ein Müller\n"
    with pytest.raises(DataError, match="has no caption: expected a member 'txt'"):
        read_caption(sample_of(jpg=b""))
    with pytest.raises(DataError, match="member 'txt' of sample 'k' is not text in UTF-8"):
        read_caption(sample_of(txt=b"\xff"))


def test_a_field_belongs_to_json() -> None:
    with pytest.raises(ValidationError, match="member 'json' needs field"):
        ClassLabels(member="json")
    with pytest.raises(ValidationError, match="field has no effect with member 'cls'"):
        MultiLabels(field="label")


def test_readers_travel_to_loader_processes() -> None:
    for target in (ClassLabels().reader(num_classes=3), MultiLabels().reader(num_classes=3)):
        assert pickle.loads(pickle.dumps(target)) == target
