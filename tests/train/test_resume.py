"""Where a run continues, and the changes that it refuses to continue with."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.train.tiny_run import pack_tiny, tiny_config
from vitscale import api
from vitscale.checkpoint.remote import RemoteFound
from vitscale.config import CheckpointError, ConfigError, UserError
from vitscale.plan.cluster import Cluster
from vitscale.plan.plan import Plan, make_plan, resolve
from vitscale.run_config import RunConfig
from vitscale.train.resume import ResumeDecision, changed_keys, decide_resume


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    api.train(tiny_config(root))
    return root


def plan_of(config: RunConfig) -> Plan:
    return make_plan(config, cluster=Cluster(device="cpu", world_size=1, memory_bytes=2**33, host_memory_bytes=2**33))


def resolved(root: Path, *overrides: str) -> RunConfig:
    config = tiny_config(root, *overrides)
    return resolve(config, plan=plan_of(config))


def decide(config: RunConfig, *, checkpoints: Path, allow_change: Sequence[str] = ()) -> ResumeDecision:
    return decide_resume(config, plan=plan_of(config), checkpoints=checkpoints, allow_change=allow_change)


def test_the_newest_whole_checkpoint_is_taken_and_a_torn_one_explained(finished: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(finished / "runs" / "tiny" / "checkpoints", checkpoints)
    tensors = checkpoints / "step-00000006" / "rank-00000.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    decision = decide(tiny_config(finished), checkpoints=checkpoints)
    assert decision.checkpoint is not None
    assert decision.checkpoint.endswith("step-00000004")
    assert any("passed over step-00000006" in message and "sha256" in message for message in decision.messages)


def test_nothing_to_resume(tmp_path: Path, finished: Path) -> None:
    assert decide(tiny_config(finished), checkpoints=tmp_path / "none").checkpoint is None


class CopiesIn:
    """Remote checkpoints that are the folders of `root`, for what deciding asks of them."""

    root = "s3://bucket/run"

    def __init__(self, root: Path, *steps: int) -> None:
        self.folder = root
        self.steps = steps

    def find(self) -> RemoteFound:
        return RemoteFound(steps=self.steps, passed_over=("s3://bucket/run/step-00000009: its upload did not finish",))

    def config_text(self, step: int) -> str:
        return (self.folder / f"step-{step:08d}" / "config.yaml").read_text()

    def download(self, step: int, *, folder: Path, show_life: Callable[[], None]) -> Path:
        show_life()
        shutil.copytree(self.folder / f"step-{step:08d}", folder / f"step-{step:08d}")
        return folder / f"step-{step:08d}"


def test_a_newer_copy_is_downloaded_first(finished: Path, tmp_path: Path) -> None:
    saved = finished / "runs" / "tiny" / "checkpoints"
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(saved / "step-00000004", checkpoints / "step-00000004")
    config = tiny_config(finished)
    remote: Any = CopiesIn(saved, 6, 4)
    decision = decide_resume(config, plan=plan_of(config), checkpoints=checkpoints, allow_change=(), remote=remote)
    assert decision.checkpoint == str(checkpoints / "step-00000006")
    assert "downloaded step-00000006 from s3://bucket/run" in decision.messages
    assert "passed over s3://bucket/run/step-00000009: its upload did not finish" in decision.messages
    assert "resuming from step-00000006 (step 6)" in decision.messages


def test_a_copy_that_the_configuration_does_not_fit_is_not_downloaded(finished: Path, tmp_path: Path) -> None:
    config = tiny_config(finished, "optim.lr=0.5")
    remote: Any = CopiesIn(finished / "runs" / "tiny" / "checkpoints", 6, 4)
    with pytest.raises(CheckpointError, match=r"s3://bucket/run/step-00000006: .* another configuration") as caught:
        decide_resume(config, plan=plan_of(config), checkpoints=tmp_path / "checkpoints", allow_change=(), remote=remote)
    assert "optim.lr: was 0.01, is 0.5" in str(caught.value)
    assert not (tmp_path / "checkpoints").exists(), "no file of the run is touched"


def test_only_damaged_checkpoints_are_not_silently_replaced_by_a_fresh_start(finished: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(finished / "runs" / "tiny" / "checkpoints", checkpoints)
    for tensors in checkpoints.glob("*/rank-00000.safetensors"):
        tensors.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the checkpoints here is whole"):
        decide(tiny_config(finished), checkpoints=checkpoints)


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["optim.lr=0.5"], ["optim.lr"]),
        (["model.depth=3", "seed=1"], ["seed", "model.depth"]),
        (["objective.augment.flip=false"], ["objective.augment.flip"]),
        (["optim.schedule={kind: wsd}"], ["optim.schedule.kind"]),
        (["data.lanes=8"], ["data.lanes"]),
        (["parallel.precision=bf16", "parallel.zero_stage=1"], ["parallel.precision"]),
    ],
)
def test_a_change_of_what_the_run_computes_is_refused_by_key_until_allowed(finished: Path, overrides: list[str], keys: list[str]) -> None:
    checkpoints = finished / "runs" / "tiny" / "checkpoints"
    changed = tiny_config(finished, *overrides)
    with pytest.raises(CheckpointError) as caught:
        decide(changed, checkpoints=checkpoints)
    for key in keys:
        assert f"{key}: was" in str(caught.value)
        assert f"--allow-change {key}" in str(caught.value)
    allowed = [key.partition(".")[0] for key in keys]
    assert decide(changed, checkpoints=checkpoints, allow_change=allowed).checkpoint is not None


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "data.num_workers=3",
        "parallel.zero_stage=3",
        "parallel.micro_batch=2",
        "parallel.recompute=full",
        "train.log_every_steps=7",
        "checkpoint.keep=9",
    ],
)
def test_a_change_of_how_it_is_carried_out_is_free(finished: Path, override: str) -> None:
    before, after = resolved(finished), resolved(finished, override)
    assert before != after
    assert changed_keys(before, after) == {}


def test_allowing_an_unknown_key_is_an_error(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"--allow-change optim.lrr: .* did you mean 'optim.lr'"):
        decide(tiny_config(finished), checkpoints=finished / "runs" / "tiny" / "checkpoints", allow_change=["optim.lrr"])


def test_another_data_set_under_the_same_path_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "train.num_samples=32")
    api.train(config)
    shutil.rmtree(tmp_path / "shards")
    pack_tiny(tmp_path, num_samples=200)
    with pytest.raises(UserError, match="manifest_sha256"):
        api.train(config)


@pytest.mark.parametrize(("global_batch", "lanes"), [(32, 4), (8, 4), (6, 2)])
def test_open_lanes_stay_those_of_the_run_where_they_divide_the_batch(finished: Path, global_batch: int, lanes: int) -> None:
    changed = tiny_config(finished, "data.lanes=auto", f"train.global_batch={global_batch}")
    allowed = ["train.global_batch", "data.lanes"] if lanes != 4 else ["train.global_batch"]
    assert decide(changed, checkpoints=finished / "runs" / "tiny" / "checkpoints", allow_change=allowed).lanes == lanes
