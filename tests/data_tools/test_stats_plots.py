"""A picture for each thing there is something to show of, and a clear word where matplotlib is missing."""

import importlib.util
from pathlib import Path

import PIL.Image
import pytest

from tests.data.packed import pack, pack_images
from vitscale.config import UsageError
from vitscale_data_tools.stats import measure
from vitscale_data_tools.stats_plots import require_matplotlib, write_plots


def test_a_picture_each(tmp_path: Path) -> None:
    stats = measure(pack_images(tmp_path, num_samples=12, samples_per_shard=12))
    written = write_plots(stats, tmp_path / "plots")
    assert [path.name for path in written] == ["classes.png", "short_side.png", "aspect_ratio.png", "bytes.png", "pixels.png"]
    assert sorted(written) == sorted((tmp_path / "plots").iterdir())
    for path in written:
        with PIL.Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 20, "an empty picture"


def test_many_classes_with_odd_names_and_no_images(tmp_path: Path) -> None:
    dataset = pack(tmp_path, [{"cls": f"$name {number}".encode()} for number in range(60)], samples_per_shard=60)
    written = write_plots(measure(dataset), tmp_path / "plots")
    assert [path.name for path in written] == ["classes.png", "bytes.png"]


def test_names_with_dollars(tmp_path: Path) -> None:
    dataset = pack(tmp_path, [{"cls": b"$\\frac$ $x"}], samples_per_shard=60)
    assert write_plots(measure(dataset), tmp_path / "plots")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    require_matplotlib()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'vitscale\[plot\]', or leave --plots out"):
        require_matplotlib()
