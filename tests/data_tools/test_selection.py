"""Class maps, removal lists and validation splits, by what is left of a source."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data_tools.test_split import Blanks
from vitscale.config import DataError
from vitscale_data_tools.selection import ClassMap, divide, exclude, map_classes, read_class_map, read_removals
from vitscale_data_tools.split import Labels, Split, multi_labels

NAMES = ClassMap(path=Path("map.txt"), names=("cat", "ant", "bee"))


def split_of(labels: Labels | None, *, classes: tuple[str, ...] | None = ("ant", "bee", "cat", "dog"), has_names: bool = True) -> Split:
    num_samples = 6 if labels is None else len(labels.values) if labels.offsets is None else len(labels.offsets) - 1
    return Split(
        images=Blanks(sizes=np.arange(num_samples) + 1),
        numbers=np.arange(num_samples),
        labels=labels,
        classes=classes if labels is not None else None,
        has_class_names=has_names,
        key_prefix="s-",
    )


def single(*values: int) -> Labels:
    return Labels(values=np.array(values))


def keys(split: Split) -> list[int]:
    return [int(split.key(index).removeprefix("s-")) for index in range(split.num_samples)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.txt", "cat\n ant \nbee\n\n"),
        ("map.json", '["cat", "ant", "bee"]'),
        ("map.json", '{"ant": 1, "bee": 2, "cat": 0}'),
    ],
)
def test_class_maps_of_every_form(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_class_map(tmp_path / name).names == NAMES.names


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("map.txt", "", "a class map without classes"),
        ("map.txt", "a\nb\na\n", "names several classes alike: a"),
        ("map.txt", "a\n\nb\n", "has an empty line or name"),
        ("map.json", '["a", ""]', "has an empty line or name"),
        ("map.json", "{", "not readable as JSON"),
        ("map.json", "3", "neither a list of names"),
        ("map.json", '{"a": true}', "neither a list of names"),
        ("map.json", '{"a": 0, "b": 2}', "its indices are not 0 to 1, each once"),
        ("map.json", '{"a": 0, "b": 0}', "its indices are not 0 to 1, each once"),
    ],
)
def test_class_maps_that_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_class_map(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd")
    for read in (read_class_map, read_removals):
        with pytest.raises(DataError, match="not UTF-8 text"):
            read(tmp_path / "bytes")
        with pytest.raises(DataError, match="cannot be read: No such file"):
            read(tmp_path / "none")


def test_classes_are_mapped_by_name() -> None:
    mapped = map_classes(split_of(single(2, 0, 1, 0)), class_map=NAMES, unknown="refuse")
    assert mapped.classes == NAMES.names
    assert mapped.labels is not None
    assert mapped.labels.values.tolist() == [0, 1, 2, 1]


def test_numbers_are_given_names() -> None:
    split = split_of(single(2, 0, 1), classes=("0", "1", "2"), has_names=False)
    mapped = map_classes(split, class_map=NAMES, unknown="refuse")
    assert mapped.classes == NAMES.names
    assert [mapped.members(i)["cls"] for i in range(3)] == [b"2", b"0", b"1"]


@pytest.mark.parametrize("has_names", [True, False])
def test_a_class_that_the_map_lacks_is_named_or_skipped(has_names: bool) -> None:
    split = split_of(single(2, 3, 1, 3), classes=("ant", "bee", "cat", "dog") if has_names else ("0", "1", "2", "3"), has_names=has_names)
    with pytest.raises(
        DataError, match=rf"map\.txt: classes of the source that the map lacks: {'dog' if has_names else '3'}\. .*--skip-unknown"
    ):
        map_classes(split, class_map=NAMES, unknown="refuse")
    mapped = map_classes(split, class_map=NAMES, unknown="skip")
    assert keys(mapped) == [0, 2]
    assert mapped.description["unknown_class"] == 2


def test_a_class_that_no_sample_has_may_be_missing() -> None:
    assert map_classes(split_of(single(0, 1)), class_map=NAMES, unknown="refuse").num_samples == 2


def test_of_several_classes_the_known_ones_stay() -> None:
    split = split_of(multi_labels([[0, 3], [3], [], [1, 2]]))
    with pytest.raises(DataError, match="the map lacks: dog"):
        map_classes(split, class_map=NAMES, unknown="refuse")
    mapped = map_classes(split, class_map=NAMES, unknown="skip")
    assert [mapped.members(i)["cls"] for i in range(4)] == [b"1", b"", b"", b"2 0"]


def test_samples_without_a_class_are_refused_or_skipped() -> None:
    split = split_of(single(1, -1, 0, -1))
    for class_map in (None, NAMES):
        with pytest.raises(DataError, match="2 of 4 samples have no class: blank of 2, blank of 4"):
            map_classes(split, class_map=class_map, unknown="refuse")
        assert keys(map_classes(split, class_map=class_map, unknown="skip")) == [0, 2]


def test_a_map_without_classes_to_map() -> None:
    assert map_classes(split_of(None), class_map=None, unknown="refuse").classes is None
    with pytest.raises(DataError, match="no classes to map"):
        map_classes(split_of(None), class_map=NAMES, unknown="refuse")


def test_removals_are_keys_or_origins(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("# duplicates\ns-000000001\n\nblank of 5\ns-000000009\nblank of 2\n")
    split = exclude(split_of(single(0, 1, 2, 0, 1)), removals=read_removals(tmp_path / "out.txt"))
    assert keys(split) == [0, 2, 3]
    assert split.description["excluded"] == 2
    assert split.notes == (f"{tmp_path}/out.txt: 1 of 4 lines name no sample here",)
    assert split.labels is not None
    assert split.labels.values.tolist() == [0, 2, 0]


def test_a_sample_keeps_its_side_as_the_source_grows() -> None:
    whole = split_of(single(*[0] * 500))
    train, val = divide(whole, val_fraction=0.2, val_per_class=None)
    assert (train.name, val.name) == ("train", "val")
    assert sorted(keys(train) + keys(val)) == list(range(500))
    assert 70 <= val.num_samples <= 130
    part_train, part_val = divide(whole.take(np.arange(0, 500, 3)), val_fraction=0.2, val_per_class=None)
    assert set(keys(part_train)) <= set(keys(train))
    assert set(keys(part_val)) <= set(keys(val))
    _, more = divide(whole, val_fraction=0.3, val_per_class=None)
    assert set(keys(val)) < set(keys(more))
    assert val.description == {"val_fraction": "0.2"}


def test_so_many_of_each_class() -> None:
    train, val = divide(split_of(single(*[0] * 10, *[2] * 30)), val_fraction=None, val_per_class=3)
    assert val.labels is not None
    assert sorted(val.labels.values.tolist()) == [0] * 3 + [2] * 3
    assert sorted(keys(train) + keys(val)) == list(range(40))
    assert val.description == {"val_per_class": 3}


@pytest.mark.parametrize(
    ("labels", "fraction", "count", "message"),
    [
        (single(0, 0), 1e-9, None, "the validation split would be empty: of 2 samples 0 validate"),
        (single(0, 0), 1 - 1e-9, None, "the training split would be empty"),
        (single(0, 0, 1), None, 1, "class 'bee' has 1 samples: --val-per-class 1 leaves none to train on"),
        (multi_labels([[0], [1]]), None, 1, "needs one class per sample"),
        (None, None, 1, "needs one class per sample"),
    ],
)
def test_divisions_that_make_no_sense(labels: Labels | None, fraction: float | None, count: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        divide(split_of(labels), val_fraction=fraction, val_per_class=count)


def test_the_json_form_keeps_odd_names(tmp_path: Path) -> None:
    names = ["#1", " padded", "ü\n2"]
    (tmp_path / "map.json").write_text(json.dumps(names))
    assert read_class_map(tmp_path / "map.json").names == tuple(names)
