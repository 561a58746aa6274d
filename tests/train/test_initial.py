"""Fine-tuning: what is loaded, resampled and replaced is what the table says, and a resume no longer needs the source."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, events, tiny_config
from vitscale import api
from vitscale.checkpoint.manifest import FileEntry, encode_manifest, read_manifest
from vitscale.config import CheckpointError, ConfigError, StopRequested
from vitscale.nn.init import initial_value
from vitscale.nn.patch_kernel import resample_patch_kernel
from vitscale.nn.resample import Grid, resample_positions
from vitscale.run_config import RunConfig
from vitscale.train.build import open_run
from vitscale.train.initial import initial_values
from vitscale.train.state import TrainState

POSITIONS, KERNEL, HEAD = "backbone.pos_embed", "backbone.patch_embed.weight", ("head.fc.weight", "head.fc.bias")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    api.train(tiny_config(root))
    return root


def tuning(source: Path, root: Path, *overrides: str) -> RunConfig:
    return tiny_config(root, "name=tuned", f"init_from.path={source}/runs/tiny", *overrides)


def first_weights(config: RunConfig) -> dict[str, torch.Tensor]:
    """The weights of step 0, as a checkpoint would hold them."""
    with open_run(config) as run:
        run.save(TrainState(), last=True)
    return {name: value for (name, kind), value in checkpoint_tensors(config.run_dir, step=0).items() if kind == "weight"}


def stored(source: Path, kind: str = "weight") -> dict[str, torch.Tensor]:
    return {name: value for (name, found), value in checkpoint_tensors(source / "runs" / "tiny", step=6).items() if found == kind}


def fresh(config: RunConfig, name: str) -> torch.Tensor:
    with torch.device("meta"):
        parameter = dict(config.objective.build(config.model.build()).named_parameters())[name]
    return initial_value(parameter, name=name, shape=tuple(parameter.shape), seed=config.seed)


def table(config: RunConfig) -> str:
    (event,) = events(config.run_dir, "init_from")
    message: str = event["message"]
    return message


def test_the_same_model_is_loaded_whole(source: Path, tmp_path: Path) -> None:
    config = tuning(source, tmp_path, "seed=5")
    weights, expected = first_weights(config), stored(source)
    assert set(weights) == set(expected)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert f"loaded  {len(expected)} tensors" in table(config)


def test_a_larger_image_resamples_the_positions_only(source: Path, tmp_path: Path) -> None:
    config = tuning(source, tmp_path, "model.image_size=16", "init_from.positions=timm")
    weights, expected = first_weights(config), stored(source)
    expected[POSITIONS] = resample_positions(expected[POSITIONS], source=Grid(2, 2), target=Grid(4, 4), num_prefix=1, mode="timm")
    assert weights[POSITIONS].shape == (1, 17, 16)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert f"resampled  {POSITIONS}" in table(config)
    assert "grid 2 x 2 to 4 x 4 by mode timm" in table(config)


def test_another_patch_resamples_kernel_and_positions(source: Path, tmp_path: Path) -> None:
    config = tuning(source, tmp_path, "model.patch_size=2")
    weights, expected = first_weights(config), stored(source)
    expected[KERNEL] = resample_patch_kernel(expected[KERNEL], num_channels=1, source=4, target=2)
    expected[POSITIONS] = resample_positions(expected[POSITIONS], source=Grid(2, 2), target=Grid(4, 4), num_prefix=1, mode="timm")
    assert "positions: mode timm, stored with the source" in table(config)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    for name in (KERNEL, POSITIONS):
        assert f"resampled  {name}" in table(config)


def test_the_mode_stored_with_the_source_is_used_and_may_be_overridden(source: Path, tmp_path: Path) -> None:
    """A source that says dinov2, one that says nothing since it is older, and an override."""
    old = tmp_path / "old"
    shutil.copytree(source / "runs" / "tiny", old)
    (checkpoint,) = [path for path in (old / "checkpoints").iterdir() if path.name.endswith("6")]
    text = (checkpoint / "config.yaml").read_text()
    assert "  resampling: timm\n" in text
    cases = {"dinov2": "  resampling: dinov2\n", "google": "", "pe": "  resampling: dinov2\n"}
    for mode, line in cases.items():
        rewritten = text.replace("  resampling: timm\n", line).encode()
        (checkpoint / "config.yaml").write_bytes(rewritten)
        entry = FileEntry(name="config.yaml", bytes=len(rewritten), sha256=hashlib.sha256(rewritten).hexdigest())
        manifest = read_manifest(checkpoint)
        files = tuple(entry if found.name == entry.name else found for found in manifest.files)
        (checkpoint / "manifest.json").write_bytes(encode_manifest(manifest.model_copy(update={"files": files})))
        asked = [f"init_from.positions={mode}"] if mode == "pe" else []
        config = tiny_config(tmp_path, f"name={mode}", f"init_from.path={old}", "model.image_size=16", *asked)
        expected = resample_positions(stored(source)[POSITIONS], source=Grid(2, 2), target=Grid(4, 4), num_prefix=1, mode=mode)  # type: ignore[arg-type]
        assert torch.equal(first_weights(config)[POSITIONS], expected)
        assert f"grid 2 x 2 to 4 x 4 by mode {mode}" in table(config)


def test_another_number_of_classes_replaces_the_head_by_a_fresh_one(source: Path, tmp_path: Path) -> None:
    config = tuning(source, tmp_path, "objective={kind: supervised, num_classes: 13, head_bias_init: 0.5}", "seed=5")
    weights, expected = first_weights(config), stored(source)
    rows = [line.split()[:2] for line in table(config).splitlines()]
    for name in HEAD:
        expected[name] = fresh(config, name)
        assert ["replaced", name] in rows
    assert weights["head.fc.bias"].shape == (13,)
    assert set(weights["head.fc.bias"].tolist()) == {0.5}
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_everything_at_once_trains(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = ["model.image_size=12", "model.patch_size=2", "objective.num_classes=11", "model.num_registers=1", "model.gelu=tanh"]
    config = tuning(source, tmp_path, *changed, "train.num_samples=32")
    assert api.train(config).step == 2
    rows = [line.split()[:2] for line in table(config).splitlines()]
    assert ["resampled", POSITIONS] in rows
    assert ["resampled", KERNEL] in rows
    assert ["replaced", HEAD[0]] in rows
    assert ["initialised", "backbone.reg_token"] in rows
    assert 'settings that differ: model.gelu "exact" in the source, "tanh" here, model.num_registers 0 in the source, 1 here' in table(
        config
    )
    assert ["loaded", str(len(stored(source)) - 4)] in rows
    assert table(config) in capsys.readouterr().out


def test_the_moving_average_can_be_the_start(source: Path, tmp_path: Path) -> None:
    weights, average = first_weights(tuning(source, tmp_path, "init_from.weights=ema")), stored(source, "ema")
    assert all(torch.equal(weights[name], value) for name, value in average.items())
    assert not torch.equal(average[KERNEL], stored(source)[KERNEL])


def test_another_width_is_refused_with_the_tensors_that_differ(source: Path, tmp_path: Path) -> None:
    config = tuning(source, tmp_path, "model.width=32")
    with pytest.raises(CheckpointError, match="its weights do not fit this model") as caught:
        api.train(config)
    assert caught.value.exit_code == 20
    assert "backbone.cls_token: 1 x 1 x 16 in the source, 1 x 1 x 32 here" in str(caught.value)
    assert not (config.run_dir / "checkpoints").exists()


def test_other_heads_are_refused_though_every_shape_fits(source: Path, tmp_path: Path) -> None:
    config = tuning(source, tmp_path, "model.num_heads=4")
    with pytest.raises(CheckpointError, match=r"model\.num_heads: 2 in the source, 4 here") as caught, open_run(config):
        pytest.fail("the run was opened")
    assert "(1 difference)" in str(caught.value)


def test_a_source_without_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no whole checkpoint here"):
        api.train(tuning(tmp_path / "nothing", tmp_path))


def test_a_resume_does_without_the_source(source: Path, tmp_path: Path) -> None:
    whole = tuning(source, tmp_path, "name=whole", "model.image_size=16")
    api.train(whole)
    moved = tmp_path / "moved"
    shutil.copytree(source / "runs" / "tiny", moved)
    parts = tuning(source, tmp_path, "model.image_size=16", f"init_from.path={moved}")
    with pytest.raises(StopRequested):
        api.train(parts, stop_at_step=3)
    shutil.rmtree(moved)
    api.train(parts)
    assert_equal_tensors(checkpoint_tensors(parts.run_dir, step=6), checkpoint_tensors(whole.run_dir, step=6))
    assert len(events(parts.run_dir, "init_from")) == 1
    with pytest.raises(CheckpointError, match=r"init_from\.path: was"):
        api.train(tuning(source, tmp_path, "model.image_size=16", "init_from.path=elsewhere"))


def test_from_scratch_follows_the_seed_and_a_resume_reads_nothing(tmp_path: Path) -> None:
    values = {}
    for seed in (0, 1):
        config = tiny_config(tmp_path, f"seed={seed}")
        with torch.device("meta"):
            objective = config.objective.build(config.model.build())
        shape = tuple(objective.get_parameter(KERNEL).shape)
        values[seed] = initial_values(config, objective, resuming=False).value(KERNEL, objective.get_parameter(KERNEL), shape)
        assert torch.equal(values[seed], fresh(config, KERNEL))
    assert not torch.equal(values[0], values[1])
    missing = tuning(tmp_path / "nothing", tmp_path)
    zeros = initial_values(missing, objective, resuming=True).value(KERNEL, objective.get_parameter(KERNEL), shape)
    assert torch.equal(zeros, torch.zeros(shape))


def test_init_from_needs_a_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"init_from\.path: required"):
        tiny_config(tmp_path, "init_from.weights=ema")
