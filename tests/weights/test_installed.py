"""Other libraries: what is said where they cannot be used. Their logits are compared in test_reference.py and tests/train."""

import sys
from pathlib import Path

import pytest

from tests.weights.foreign import google_arrays, write_npz
from vitscale.models import ViTConfig
from vitscale.weights.installed import NotUsable, load_library, timm_with_npz

MODEL = ViTConfig(image_size=12, patch_size=4, width=32, depth=2, num_heads=4, mlp_width=48, gelu="tanh")


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NotUsable, match="timm is not installed"):
        load_library("timm")


def test_a_library_that_breaks_while_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> object:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(NotUsable, match=r"timm cannot be imported \(operator torchvision::nms does not exist\)"):
        load_library("timm")


def test_timm_drops_pre_logits_so_it_is_no_yardstick(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "w.npz", google_arrays(pre_logits=8))
    with pytest.raises(NotUsable, match="drops the layer pre_logits"):
        timm_with_npz(MODEL, path=path, num_classes=5, class_row=True)
