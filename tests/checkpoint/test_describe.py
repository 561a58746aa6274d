"""What is told of checkpoints: the truth about whole, damaged and unfinished ones, and why each stays."""

from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.simulation import make_tensors, save_as
from vitscale.checkpoint.describe import (
    bytes_to_verify,
    describe_checkpoint,
    find_folders,
    list_checkpoints,
    read_policy,
    verify_folder,
)
from vitscale.checkpoint.discover import verify
from vitscale.checkpoint.manifest import encode_manifest
from vitscale.checkpoint.retention import RetentionPolicy
from vitscale.config import CheckpointError, ConfigError

TENSORS = make_tensors(seed=1, shapes={"b": (4, 6), "a": (3,)})
STATE: dict[str, Any] = {
    "step": 4,
    "samples": 1024,
    "cursor": {"dataset": "abc", "order": 7, "consumed": 1024},
    "lost": [{"sample_id": 3}],
    "config_hash": "f" * 64,
    "schedule": {"kind": "cosine", "samples": 1024, "total_samples": 4096, "lr": 0.0005},
}
CONFIG = "checkpoint: {keep: 1, keep_every_steps: 2, keep_best: {metric: eval/test/top1}}\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Steps 1 to 4 whole, 5 damaged, 6 unfinished; 2 and 4 are kept for ever and 1 is the best."""
    for step in (1, 2, 3, 4, 5):
        save_as(TENSORS, folder=tmp_path / "checkpoints", step=step, world_size=2, state=STATE)
    (tmp_path / "checkpoints" / "step-00000005" / "state.json").write_text("torn")
    (tmp_path / "checkpoints" / "step-00000006.tmp").mkdir()
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "eval/test/top1": 0.9}\n{"step": 3, "eval/test/top1": 0.8}\n')
    return tmp_path


def test_a_path_may_be_a_run_its_checkpoints_or_one_of_them(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [6, 5, 4, 3, 2, 1]
    assert [entry.step for entry in find_folders(run)] == steps
    assert [entry.step for entry in find_folders(run / "checkpoints")] == steps
    assert [entry.path.name for entry in find_folders(run / "checkpoints" / "step-00000006.tmp")] == ["step-00000006.tmp"]
    monkeypatch.chdir(run / "checkpoints" / "step-00000002")
    assert [entry.step for entry in find_folders(Path())] == [2]
    (run / "checkpoints" / "step-00000003").rename(run / "copy")
    assert [(entry.step, entry.path.name) for entry in find_folders(run / "copy")] == [(3, "copy")]


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (None, r"no checkpoint of vitscale \(there is no such path\); give a run directory"),
        ("notes.txt", r"no checkpoint of vitscale; give a run directory"),
        ("latest", "no checkpoint of vitscale: theirs is a DeepSpeed checkpoint"),
        ("checkpoints/latest", "no checkpoint of vitscale: checkpoints is a DeepSpeed checkpoint"),
        ("step-100/.metadata", r"no checkpoint of vitscale: step-100 is a checkpoint of torch\.distributed"),
    ],
)
def test_a_path_without_checkpoints_is_explained(tmp_path: Path, create: str | None, message: str) -> None:
    if create is not None:
        (tmp_path / "theirs" / create).parent.mkdir(parents=True)
        (tmp_path / "theirs" / create).write_text("")
    with pytest.raises(CheckpointError, match=message):
        find_folders(tmp_path / "theirs")


def test_the_list_tells_state_reason_and_why_each_stays(run: Path) -> None:
    listed = list_checkpoints(find_folders(run), policy=read_policy(run))
    assert [(entry.step, entry.state, entry.kept_because) for entry in listed] == [
        (6, "unfinished", ()),
        (5, "damaged", ()),
        (4, "whole", ("the newest", "every 2 steps")),
        (3, "whole", ()),
        (2, "whole", ("every 2 steps",)),
        (1, "whole", ("best eval/test/top1",)),
    ]
    assert [entry.problem is None for entry in listed] == [False, False, True, True, True, True]
    assert "state.json: has 4 bytes" in str(listed[1].problem)
    whole = listed[2]
    assert (whole.samples, whole.world_size, whole.zero_stage) == (1024, 2, 1)
    assert whole.num_bytes == sum(path.stat().st_size for path in (run / "checkpoints" / "step-00000004").iterdir())


def test_one_checkpoint_is_judged_among_its_siblings(run: Path) -> None:
    (listed,) = list_checkpoints(find_folders(run / "checkpoints" / "step-00000003"), policy=read_policy(run))
    assert (listed.state, listed.kept_because) == ("whole", ())


def test_the_policy_comes_from_the_run_or_from_a_checkpoint(run: Path) -> None:
    policy = read_policy(run, keep=3)
    assert policy is not None
    assert policy.outdated([1, 2, 3, 4, 5, 7]) == [3]
    (run / "config.yaml").unlink()
    policy = read_policy(run)  # of the newest checkpoint, which says nothing of what to keep
    assert policy is not None
    assert policy.outdated([1, 2, 3, 4]) == [1]
    for path in (run / "checkpoints").glob("*/config.yaml"):
        path.unlink()
    assert read_policy(run) is None
    policy = read_policy(run, keep=1)
    assert policy is not None
    assert policy.outdated([1, 2]) == [1]


@pytest.mark.parametrize("text", ["checkpoint: {keep: many}", "checkpoint: [1]", "checkpoint: {colour: red}"])
def test_a_configuration_that_is_not_understood_is_said(run: Path, text: str) -> None:
    (run / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_policy(run)


def test_the_description_is_what_was_saved(run: Path) -> None:
    path = run / "checkpoints" / "step-00000004"
    described = describe_checkpoint(path)
    manifest = verify(path)
    assert (described.step, described.samples, described.world_size, described.zero_stage) == (4, 1024, 2, 1)
    assert described.config_hash == "f" * 64
    assert described.schedule == STATE["schedule"]
    assert described.data == {"dataset": "abc", "order": 7}
    assert described.num_lost_samples == 1
    assert [file["name"] for file in described.files] == [entry.name for entry in manifest.files]
    assert described.num_bytes == sum(entry.bytes for entry in manifest.files)
    assert described.num_parameters == 27
    assert [(tensor.name, tensor.shape, tensor.dtype) for tensor in described.tensors] == [("a", (3,), "float32"), ("b", (4, 6), "float32")]
    kinds = {kind for _, kind in TENSORS}
    assert all(tensor.kinds[0] == "weight" and set(tensor.kinds) == kinds for tensor in described.tensors)
    assert [tensor.num_bytes for tensor in described.tensors] == [12 * len(kinds), 96 * len(kinds)]


def test_an_older_one_that_recorded_less_is_described_too(tmp_path: Path) -> None:
    described = describe_checkpoint(save_as(TENSORS, folder=tmp_path, step=1))
    assert (described.samples, described.config_hash, described.schedule, described.data) == (None, None, None, {})


def test_verifying_reads_every_byte(run: Path) -> None:
    path = run / "checkpoints" / "step-00000003" / "rank-00001.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    folders = find_folders(run)
    verified = {found.step: found for found in map(verify_folder, folders)}
    assert {step: found.state for step, found in verified.items()} == {
        6: "unfinished",
        5: "damaged",
        4: "whole",
        3: "damaged",
        2: "whole",
        1: "whole",
    }
    assert "rank-00001.safetensors: its content changed" in str(verified[3].problem)
    reports: list[int] = []
    whole = verify_folder(folders[2], report=reports.append)
    assert reports[-1] == whole.num_bytes == bytes_to_verify([folders[2]])


def test_pieces_that_do_not_tile_are_found_though_every_hash_is_right(run: Path) -> None:
    path = run / "checkpoints" / "step-00000002"
    manifest = verify(path)
    fewer = tuple(entry for entry in manifest.files if entry.name != "rank-00001.safetensors")
    (path / "manifest.json").write_bytes(encode_manifest(manifest.model_copy(update={"files": fewer})))
    verify(path)
    found = verify_folder(find_folders(path)[0])
    assert found.state == "damaged"
    assert "are missing" in str(found.problem)


def test_a_policy_of_ones_own_is_used(run: Path) -> None:
    listed = list_checkpoints(find_folders(run), policy=RetentionPolicy(keep=4))
    assert [entry.kept_because for entry in listed if entry.state == "whole"] == [("one of the 4 newest",)] * 4
    assert all(entry.kept_because == () for entry in list_checkpoints(find_folders(run), policy=None))
