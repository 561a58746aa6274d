"""Other programs' checkpoints are named for what they are and never read, and a run does not start over beside them."""

from pathlib import Path

import pytest

from tests.checkpoint.simulation import make_tensors, save_as
from vitscale.checkpoint.discover import find_newest, resolve_checkpoint
from vitscale.checkpoint.foreign import explain_foreign, find_foreign
from vitscale.checkpoint.manifest import read_manifest
from vitscale.config import CheckpointError

FOREIGN = [
    (("latest", "global_step100/mp_rank_00_model_states.pt"), ".", r"is a DeepSpeed checkpoint \(it holds latest\)"),
    (("latest", "global_step100/mp_rank_00_model_states.pt"), "global_step100", r"is a DeepSpeed checkpoint \(it holds mp_rank_00_model"),
    (("zero_to_fp32.py",), ".", "is a DeepSpeed checkpoint"),
    (("step-1000/.metadata", "step-1000/__0_0.distcp"), "step-1000", r"is a checkpoint of torch\.distributed\.checkpoint"),
    (("pytorch_model.bin", "config.json"), ".", r"holds pickled files of torch \(pytorch_model\.bin\)"),
    (("model.pth",), "model.pth", r"model\.pth is a pickled file of torch"),
]


def _create(folder: Path, files: tuple[str, ...]) -> None:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x80\x04never read.")


@pytest.mark.parametrize(("files", "given", "message"), FOREIGN)
def test_it_is_named_with_the_remedy(tmp_path: Path, files: tuple[str, ...], given: str, message: str) -> None:
    _create(tmp_path / "theirs", files)
    path = tmp_path / "theirs" / given
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve_checkpoint(path)
    assert "vitscale reads its own checkpoints only" in str(caught.value)
    assert "Give a run directory or checkpoint of vitscale" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_given_as_a_checkpoint_is_named_too(tmp_path: Path) -> None:
    _create(tmp_path, ("latest", "global_step1/zero_pp_rank_0_mp_rank_00_optim_states.pt"))
    with pytest.raises(CheckpointError, match=r"not a checkpoint of vitscale: .* is a DeepSpeed checkpoint"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("files", [("latest", "global_step100/mp_rank_00_model_states.pt"), ("step-1000/.metadata",)])
def test_a_run_finds_it_where_it_has_none_of_its_own(tmp_path: Path, files: tuple[str, ...]) -> None:
    _create(tmp_path, files)
    found = find_newest(tmp_path)
    assert found.checkpoint is None
    assert [entry.path.suffix for entry in found.passed_over] == [""]
    assert "vitscale reads its own checkpoints only" in found.passed_over[0].reason


def test_beside_a_checkpoint_of_ours_it_does_not_matter(tmp_path: Path) -> None:
    saved = save_as(make_tensors(seed=1), folder=tmp_path, step=1)
    _create(tmp_path, ("latest", "global_step100/mp_rank_00_model_states.pt"))
    assert find_newest(tmp_path).checkpoint == saved
    assert find_newest(tmp_path).passed_over == ()


def test_ours_and_anything_else_is_not_foreign(tmp_path: Path) -> None:
    saved = save_as(make_tensors(seed=1), folder=tmp_path, step=1)
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "latest").mkdir()
    for path in (saved, tmp_path, tmp_path / "notes.txt", tmp_path / "missing"):
        assert explain_foreign(path) is None
    assert list(find_foreign(tmp_path)) == []
