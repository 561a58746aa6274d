"""Hybrids go out to the projects that know them, give their outputs there, and come back to the bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from timm import create_model

from tests.train.random_run import stored_tensors, write_random_run
from vitscale import api
from vitscale.config import CheckpointError
from vitscale.models import ViTConfig
from vitscale.weights.names import plan_conversions
from vitscale.weights.targets import Format, sizes_of

SIZES = {"image_size": 32, "patch_size": 16, "width": 32, "depth": 1, "num_heads": 4, "mlp_width": 64}


@pytest.mark.parametrize(("target", "epsilons", "units"), [("timm", "timm", []), ("vit_jax", "google", []), ("vit_jax", "google", [1, 2])])
def test_out_and_back(tmp_path: Path, target: Format, epsilons: str, units: list[int]) -> None:
    stem = {"kind": "resnet", "units": units, "width": 64 if target == "timm" else 32, "epsilons": epsilons}
    gelu = "tanh" if target == "vit_jax" else "exact"
    stored = write_random_run(tmp_path / "run", sizes=SIZES, stem=stem, gelu=gelu)
    exported = api.export(tmp_path / "run", layout=target)
    assert all(comparison.within(1e-5) for comparison in exported.comparisons), exported.comparisons
    assert (exported.comparisons[1].skipped is None) == (target == "timm")
    source = exported.folder / "model.npz" if target == "vit_jax" else exported.folder
    imported = api.import_weights(source, tmp_path / "back")
    assert imported.model["model"]["stem"] == stored.model.stem.model_dump(mode="json")
    assert imported.model["model"]["patch_size"] == 16
    there, back = stored_tensors(tmp_path / "run"), stored_tensors(tmp_path / "back")
    assert there.keys() == back.keys()
    assert all(torch.equal(value, back[name]) for name, value in there.items())


def test_vectors_of_norms_may_have_axes_before_them(tmp_path: Path) -> None:
    write_random_run(tmp_path / "run", sizes=SIZES, stem={"kind": "resnet", "width": 32}, gelu="tanh")
    folder = api.export(tmp_path / "run", layout="vit_jax").folder
    with np.load(folder / "model.npz") as archive:
        arrays = {name: archive[name].reshape(1, 1, 1, -1) if name.startswith("gn_root") else archive[name] for name in archive.files}
    np.savez(tmp_path / "old.npz", **arrays)
    api.import_weights(tmp_path / "old.npz", tmp_path / "back")
    there, back = stored_tensors(tmp_path / "run"), stored_tensors(tmp_path / "back")
    assert all(torch.equal(value, back[name]) for name, value in there.items())


@pytest.mark.parametrize(("name", "theirs"), [("R26+S/32", "vit_small_r26_s32_224"), ("R50+B/16", "vit_base_r50_s16_224")])
def test_every_tensor_of_timms_hybrid_has_its_place(name: str, theirs: str) -> None:
    model = ViTConfig(variant=name, image_size=224)
    with torch.device("meta"):
        ours = {f"backbone.{key}": tuple(value.shape) for key, value in model.build().named_parameters()}
        expected = {key: tuple(value.shape) for key, value in create_model(theirs, num_classes=0).state_dict().items()}
    conversions = plan_conversions(ours, layout="timm", sizes=sizes_of(model, their_row=True))
    assert {key: shape for conversion in conversions for key, shape in conversion.theirs.items()} == expected


def test_epsilons_of_the_other_project_are_refused(tmp_path: Path) -> None:
    write_random_run(tmp_path / "run", sizes=SIZES, stem={"kind": "resnet", "width": 64}, gelu="tanh")
    with pytest.raises(CheckpointError, match=r"timm cannot hold this model .*add other numbers.* can be exported to: vit_jax"):
        api.export(tmp_path / "run", layout="timm")
