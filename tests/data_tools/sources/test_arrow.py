"""Data sets in the layout that `save_to_disk` of Hugging Face's datasets 5.2 writes, made here with pyarrow alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.data_tools.images import image_bytes
from vitscale.config import DataError
from vitscale_data_tools.options import SourceOptions
from vitscale_data_tools.sources.arrow import open_arrow
from vitscale_data_tools.split import Split, UnusableImageError

IMAGES = [image_bytes(number, file_format="PNG" if number % 2 else "JPEG") for number in range(5)]
LABEL = {"names": ["ant", "bee"], "_type": "ClassLabel"}
TAGS = {"feature": {"names": ["x", "y", "z"], "_type": "ClassLabel"}, "_type": "List"}
FEATURES: dict[str, Any] = {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_dataset(folder: Path, columns: dict[str, Any], features: dict[str, Any], *, num_files: int = 1, **state: Any) -> Path:
    folder.mkdir(parents=True)
    rows = len(columns["image"])
    table = pa.table({name: pa.array(values, IMAGE_TYPE) if name == "image" else values for name, values in columns.items()})
    names = [f"data-{number:05d}-of-{num_files:05d}.arrow" for number in range(num_files)]
    cuts = [rows * number // num_files for number in range(num_files + 1)]
    for name, start, stop in zip(names, cuts, cuts[1:], strict=False):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table.slice(start, stop - start), max_chunksize=2)
    written = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_format_type": None, "_split": "train"}
    (folder / "state.json").write_text(json.dumps({**written, **state}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features, "citation": ""}))
    return folder


def write_simple(folder: Path, **more: Any) -> Path:
    columns = {"image": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(IMAGES)], "text": list("abcde")}
    labels = {"label": more.get("labels", [0, 1, 1, 0, 1])}
    return write_dataset(folder, {**columns, **labels}, {**FEATURES, "label": LABEL}, num_files=more.get("num_files", 1))


def opened(folder: Path, **options: Any) -> Split:
    (split,) = open_arrow(folder, SourceOptions(**options))
    return split


def members(split: Split) -> list[dict[str, bytes]]:
    return [split.members(index) for index in range(split.num_samples)]


@pytest.mark.parametrize("num_files", [1, 2])
def test_one_data_set_of_several_files_and_batches(tmp_path: Path, num_files: int) -> None:
    split = opened(write_simple(tmp_path / "d", num_files=num_files), caption_column="text")
    assert (split.name, split.classes) == (None, ("ant", "bee"))
    assert members(split)[:2] == [{"cls": b"0", "txt": b"a"}, {"cls": b"1", "txt": b"b"}]
    assert [split.images.read(i).image for i in range(5)] == IMAGES
    assert split.images.tar_bytes().tolist() == [512 + -(-len(data) // 512) * 512 for data in IMAGES]
    part = split.take(np.array([4, 2]))
    assert [part.images.read(i).image for i in range(2)] == [IMAGES[4], IMAGES[2]]
    assert [part.images.origin(i) for i in range(2)] == ["row 4", "row 2"]


def test_splits_of_a_dict_go_by_their_folders(tmp_path: Path) -> None:
    """A split that was selected from another one still carries that one's name in state.json."""
    for name in ("train", "test"):
        write_simple(tmp_path / "d" / name)
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    splits = open_arrow(tmp_path / "d", SourceOptions())
    assert [(split.name, split.key(3)) for split in splits] == [("train", "train-000000003"), ("test", "test-000000003")]


@pytest.mark.parametrize("feature", [TAGS, {**TAGS, "_type": "Sequence"}, [TAGS["feature"]]], ids=["5", "3", "1"])
def test_lists_of_classes_as_all_versions_write_them(tmp_path: Path, feature: Any) -> None:
    columns = {"image": [{"bytes": data, "path": None} for data in IMAGES[:3]], "tags": [[2, 0], [], [1]]}
    split = opened(write_dataset(tmp_path / "d", columns, {"image": {"_type": "Image"}, "tags": feature}))
    assert split.classes == ("x", "y", "z")
    assert members(split) == [{"cls": b"0 2"}, {"cls": b""}, {"cls": b"1"}]


def test_values_without_names_can_be_classes(tmp_path: Path) -> None:
    columns = {"image": [{"bytes": data, "path": None} for data in IMAGES[:3]], "text": ["b", "a", "b"]}
    folder = write_dataset(tmp_path / "d", columns, FEATURES)
    assert opened(folder).classes is None
    split = opened(folder, label_column="text")
    assert (split.classes, members(split)) == (("a", "b"), [{"cls": b"1"}, {"cls": b"0"}, {"cls": b"1"}])


def test_a_class_that_is_not_known(tmp_path: Path) -> None:
    split = opened(write_simple(tmp_path / "d", labels=[0, -1, None, 0, 1]))
    assert split.labels is not None
    assert split.labels.values.tolist() == [0, -1, -1, 0, 1]


def test_images_in_files_of_their_own_or_missing(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(IMAGES[0])
    paths = [str(tmp_path / "a.jpg"), str(tmp_path / "none.jpg"), None]
    columns = {"image": [*({"bytes": None, "path": path} for path in paths), None]}
    split = opened(write_dataset(tmp_path / "d", columns, {"image": {"_type": "Image"}}))
    assert (split.images.read(0).image, split.images.read(0).extension) == (IMAGES[0], "jpg")
    for index, reason in {1: "No such file", 2: "no image", 3: "no image"}.items():
        with pytest.raises(UnusableImageError, match=reason):
            split.images.read(index)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ({"text": FEATURES["text"]}, {}, r"has 0 image columns \(none\)"),
        ({**FEATURES, "thumbnail": {"_type": "Image"}}, {}, r"has 2 image columns \(image, thumbnail\). Name one with --image-column"),
        (FEATURES, {"image_column": "text"}, "--image-column text: its image columns are image"),
        ({**FEATURES, "label": LABEL, "tags": TAGS}, {}, r"several columns of classes \(label, tags\)"),
        (FEATURES, {"label_column": "class"}, "has no column 'class'; its columns are image, text"),
        (FEATURES, {"caption_column": "title"}, "has no column 'title'"),
        (FEATURES, {"label_column": "text", "labels_column": "text"}, "Give one of them"),
        ({**FEATURES, "label": {**LABEL, "names": ["ant"]}}, {}, "a class index outside of its 1 names"),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, features: dict[str, Any], options: dict[str, str], message: str) -> None:
    folder = write_simple(tmp_path / "d")
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    with pytest.raises(DataError, match=message):
        opened(folder, **options)


def test_a_folder_of_another_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"state\.json: cannot be read: No such file.*save_to_disk"):
        opened(tmp_path)
    folder = write_simple(tmp_path / "d")
    (folder / "state.json").write_text("{")
    with pytest.raises(DataError, match="not readable as JSON"):
        opened(folder)
    (folder / "state.json").write_text("[]")
    with pytest.raises(DataError, match="not what `datasets` writes"):
        opened(folder)
    (folder / "state.json").write_text('{"_data_files": []}')
    with pytest.raises(DataError, match="without rows"):
        opened(folder)
    (folder / "state.json").write_text('{"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}')
    with pytest.raises(DataError, match="through an index file"):
        opened(folder)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../cut.arrow"}]}')
    (tmp_path / "cut.arrow").write_bytes((folder / "data-00000-of-00001.arrow").read_bytes()[:300])
    with pytest.raises(DataError, match=r"cut\.arrow: not readable as an Arrow stream"):
        opened(folder)
