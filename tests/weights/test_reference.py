"""The formulas: timm's and transformers' own logits; what Google's files compute is timm's reading of them, in its tanh form."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.weights import foreign
from tests.weights.foreign import google_arrays, torch_state, write_hugging_face, write_npz
from vitscale.models import ViTConfig
from vitscale.weights.installed import timm_with_npz, timm_with_state, transformers_from_folder
from vitscale.weights.reference import ReferenceSettings, reference_output
from vitscale.weights.rules import Layout

IMAGE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
TOLERANCE = 1e-6


def settings(layout: Layout, **changes: object) -> ReferenceSettings:
    values = {"layout": layout, "depth": foreign.DEPTH, "num_heads": foreign.HEADS, "gelu": "exact", "layer_norm_eps": 1e-6}
    return ReferenceSettings(**(values | changes))  # type: ignore[arg-type]


def model(**changes: object) -> ViTConfig:
    sizes = {"image_size": 12, "patch_size": 4, "width": 32, "depth": 2, "num_heads": 4, "mlp_width": 48}
    return ViTConfig(**(sizes | changes))  # type: ignore[arg-type]


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert float(theirs.std()) > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE * float(theirs.abs().max()))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_timms_logits(pooling: str) -> None:
    state = torch_state(pooling=pooling)
    theirs = timm_with_state(model(pooling=pooling), layout="timm", state=state, num_classes=foreign.CLASSES, class_row=True)(IMAGE)
    assert_same(reference_output(IMAGE, settings=settings("timm", pooling=pooling), names=state, read=state.__getitem__), theirs)


def test_transformers_logits(tmp_path: Path) -> None:
    folder = write_hugging_face(tmp_path / "hf", hidden_act="gelu_new", layer_norm_eps=1e-3)
    state = load_file(folder / "model.safetensors")
    ours = reference_output(IMAGE, settings=settings("hf_vit", gelu="tanh", layer_norm_eps=1e-3), names=state, read=state.__getitem__)
    assert_same(ours, transformers_from_folder(folder, output="class", has_head=True)(IMAGE))


@pytest.mark.parametrize(
    ("big_vision", "pooling", "class_row"), [(False, "cls", True), (False, "mean", True), (True, "cls", False), (True, "mean", True)]
)
def test_timm_reads_googles_files_the_same(tmp_path: Path, big_vision: bool, pooling: str, class_row: bool) -> None:
    arrays = google_arrays(big_vision=big_vision, pooling=pooling, class_row=class_row)
    path = write_npz(tmp_path / "w.npz", arrays, prefix="params/" if big_vision else "")
    theirs = timm_with_npz(model(gelu="tanh", pooling=pooling), path=path, num_classes=foreign.CLASSES, class_row=class_row)(IMAGE)
    layout: Layout = "big_vision" if big_vision else "vit_jax"
    ours = reference_output(
        IMAGE, settings=settings(layout, gelu="tanh", pooling=pooling), names=arrays, read=lambda name: torch.from_numpy(arrays[name])
    )
    assert_same(ours, theirs)


def test_pre_logits_come_before_the_head() -> None:
    arrays = {name: torch.from_numpy(value) for name, value in google_arrays(pre_logits=16).items()}
    headless = {name: value for name, value in arrays.items() if not name.startswith(("head/", "pre_logits/"))}
    features = reference_output(IMAGE, settings=settings("vit_jax", gelu="tanh"), names=headless, read=headless.__getitem__)
    hidden = torch.tanh(features @ arrays["pre_logits/kernel"] + arrays["pre_logits/bias"])
    logits = reference_output(IMAGE, settings=settings("vit_jax", gelu="tanh"), names=arrays, read=arrays.__getitem__)
    assert torch.equal(logits, hidden @ arrays["head/kernel"] + arrays["head/bias"])
