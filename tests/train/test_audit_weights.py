"""The comparison of checkpoints: bits, not values; whatever world and stage wrote them; tensors that one run alone has."""

from pathlib import Path

import pytest
import torch

from tests.checkpoint.simulation import Tensors, make_tensors, save_as
from vitscale.config import CheckpointError
from vitscale.train import audit_weights
from vitscale.train.audit_weights import CheckpointComparison, checkpoint_steps, compare_checkpoints, differences


def compare(root: Path, a: Tensors, b: Tensors) -> CheckpointComparison:
    paths = [save_as(tensors, folder=root / name, step=2) for name, tensors in (("a", a), ("b", b))]
    return compare_checkpoints(*paths)


def test_worlds_and_stages_do_not_matter(tmp_path: Path) -> None:
    tensors = make_tensors(seed=0)
    a = save_as(tensors, folder=tmp_path / "a", step=4, world_size=3, zero_stage=3)
    b = save_as(tensors, folder=tmp_path / "b", step=4, world_size=1, zero_stage=0)
    found = compare_checkpoints(a, b)
    assert found.is_equal
    assert (found.step, found.num_tensors, found.num_bytes, found.state) == (4, 16, 4 * 4 * (15 + 7 + 1 + 12), {})


def test_a_changed_element_is_named_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_weights, "_CHUNK_ELEMENTS", 4)  # so that tensors take several pieces
    a = make_tensors(seed=0)
    b = {key: value.clone() for key, value in a.items()}
    b["backbone.a", "exp_avg"].view(-1)[13] += 0.5
    b["backbone.a", "exp_avg"].view(-1)[2] += 0.25
    found = compare(tmp_path, a, b)
    assert not found.is_equal
    (tensor,) = found.different
    assert (tensor.name, tensor.kind, tensor.num_different, tensor.max_delta) == ("backbone.a", "exp_avg", 2, pytest.approx(0.5))


def test_bits_are_compared_not_values(tmp_path: Path) -> None:
    a, b = make_tensors(seed=0), make_tensors(seed=0)
    a["head.scale", "weight"], b["head.scale", "weight"] = torch.tensor(0.0), torch.tensor(-0.0)
    a["backbone.b", "weight"][3] = b["backbone.b", "weight"][3] = float("nan")
    a["head.w", "ema"].view(-1)[0], b["head.w", "ema"].view(-1)[0] = float("nan"), 1.0
    found = {(tensor.name, tensor.kind): tensor for tensor in compare(tmp_path, a, b).different}
    assert found.keys() == {("head.scale", "weight"), ("head.w", "ema")}
    assert found["head.scale", "weight"].max_delta == 0.0
    assert (found["head.w", "ema"].max_delta, found["head.w", "ema"].problem) == (None, "nan or infinite in one of them")


def test_a_tensor_that_one_run_lacks_or_has_in_another_shape_differs(tmp_path: Path) -> None:
    shapes_a, shapes_b = {"x": (2, 3), "y": (4,)}, {"x": (3, 2), "z": (4,)}
    found = compare(
        tmp_path, make_tensors(seed=0, shapes=shapes_a, kinds=("weight",)), make_tensors(seed=0, shapes=shapes_b, kinds=("weight",))
    )
    assert [(tensor.name, tensor.problem) for tensor in found.different] == [
        ("x", "shape (2, 3) in A, shape (3, 2) in B"),
        ("y", "shape (4,) in A, missing in B"),
        ("z", "missing in A, shape (4,) in B"),
    ]


def test_the_host_state_is_shown_and_does_not_make_weights_differ(tmp_path: Path) -> None:
    tensors = make_tensors(seed=0)
    a = save_as(tensors, folder=tmp_path / "a", step=2, state={"step": 2, "cursor": {"lanes": 4}})
    b = save_as(tensors, folder=tmp_path / "b", step=2, state={"step": 2, "cursor": {"lanes": 8}})
    found = compare_checkpoints(a, b)
    assert found.is_equal
    assert found.state == {"cursor.lanes": (4, 8)}


def test_a_damaged_checkpoint_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = save_as(make_tensors(seed=0), folder=tmp_path, step=2)
    file = path / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"rank-00000\.safetensors"):
        compare_checkpoints(path, path)


def test_committed_steps_oldest_first(tmp_path: Path) -> None:
    for step in (10, 2):
        save_as(make_tensors(seed=0), folder=tmp_path / "checkpoints", step=step)
    (tmp_path / "checkpoints" / "step-00000012.tmp").mkdir()
    assert checkpoint_steps(tmp_path) == [2, 10]
    assert checkpoint_steps(tmp_path / "none") == []


def test_differences_of_trees() -> None:
    assert differences({"a": {"b": 1, "c": [1]}, "d": 0}, {"a": {"b": 2, "c": [1]}, "e": None}) == {"a.b": (1, 2), "d": (0, None)}
    assert differences({"a": 1}, {"a": True}) == {"a": (1, True)}
    assert differences({"sets": [{"x": 1}, {"x": 2}]}, {"sets": [{"x": 1}, {"x": 3}]}) == {"sets.1.x": (2, 3)}
    assert differences({"sets": [{"x": 1}]}, {}) == {"sets.0.x": (1, None)}, "a missing branch is one without leaves"
    assert differences({"a": [1]}, {"a": 1}) == {"a": ([1], 1)}
