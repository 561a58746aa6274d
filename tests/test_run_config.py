"""The run file as a whole: what it decodes to, the checks that span its sections, and what a resume may change."""

from pathlib import Path
from typing import Any

import pytest

from vitscale.config import ConfigError, apply_overrides, binding_values, decode, dump_yaml
from vitscale.run_config import RunConfig, dump_run_config, load_run_config

VALUES: dict[str, Any] = {
    "name": "test",
    "model": {
        "kind": "vit",
        "image_size": 28,
        "patch_size": 7,
        "num_channels": 1,
        "width": 32,
        "depth": 1,
        "num_heads": 2,
        "image_mean": [0.3],
        "image_std": [0.3],
    },
    "objective": {"kind": "supervised", "num_classes": 10},
    "data": {"kind": "shards", "path": "shards/train"},
    "optim": {"lr": 1e-3, "schedule": {"kind": "cosine", "warmup_samples": 100}},
    "train": {"num_samples": 1000, "global_batch": 64},
    "evals": {"test": {"kind": "classification", "path": "shards/test"}},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(dump_yaml(VALUES))
    return tmp_path / "run.yaml"


def test_a_sound_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_run_config(path, overrides=["train.global_batch=30"])
    assert config.num_steps == 33
    assert config.run_dir == tmp_path / "runs" / "test"
    assert config.parallel.zero_stage == config.data.lanes == "auto"


def test_the_resolved_text_decodes_to_the_same_run(path: Path, tmp_path: Path) -> None:
    config = load_run_config(path, overrides=["init_from={path: runs/other}", "optim.schedule={kind: rsqrt, timescale_samples: 10}"])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_run_config(config))
    assert load_run_config(resolved) == config
    assert "recompute_every: 1" in resolved.read_text()


PROBLEMS: list[tuple[list[str], list[str]]] = [
    (["data.lanes=48"], ["train.global_batch: 64 is not a multiple of data.lanes 48"]),
    (["train.global_batch=1001"], ["train.num_samples: 1000 is less than one global batch of 1001"]),
    (["optim.schedule.warmup_samples=1001"], ["optim.schedule.warmup_samples: 1001 is longer than the whole run (train.num_samples 1000)"]),
    (
        ["optim.schedule={kind: wsd, warmup_samples: 200, decay_samples: 801}"],
        ["optim.schedule.decay_samples: 801 does not fit between the warm-up of 200 and the end (train.num_samples 1000)"],
    ),
    (
        ["optim.schedule={kind: rsqrt, timescale_samples: 9, cooldown_samples: 1001}"],
        ["optim.schedule.cooldown_samples: 1001 does not fit between the warm-up of 0"],
    ),
    (["parallel.precision=bf16", "parallel.zero_stage=0"], ["parallel.zero_stage: 0 with precision bf16"]),
    (["parallel.offload_optimizer=true", "parallel.zero_stage=0"], ["parallel.offload_optimizer: at ZeRO stage 0"]),
    (["model.num_channels=4"], ["model.num_channels: images are read as grey (1 channel) or colour (3), not with 4"]),
    (["parallel.recompute_every=2"], ["parallel.recompute_every: 2 has no effect with recompute none"]),
    (["evals.test.weights=ema"], ["evals.test.weights: 'ema' needs a moving average; set optim.ema_decay"]),
    (
        ["data.lanes=48", "optim.schedule.warmup_samples=1001", "evals.test.weights=ema"],
        ["train.global_batch: 64", "optim.schedule.warmup_samples", "evals.test.weights"],
    ),
    (
        ["stages=[{until_samples: 500, image_size: 13}, {until_samples: 400, image_size: 56}]"],
        [
            "stages.0.image_size: 13 is not a multiple of the patch size",
            "stages.1.until_samples: 400 does not lie between the start of the stage at 500 and the end of the run (train.num_samples 1000",
            "stages.1.image_size: 56 is not a multiple of the patch size",
        ],
    ),
    (["stages=[{until_samples: 1000, image_size: 14}]"], ["stages.0.until_samples: 1000 does not lie between"]),
    (["data.num_workers=0", "data.prefetch=2"], ["data: prefetch 2 has no effect with num_workers 0"]),
    (["model.image_size=30"], ["model.image_size: "]),
    (["name=../x"], ["name: "]),
    (["seed=-1", "modle={}"], ["seed: expected a number greater than or equal to 0, got -1", "modle: unknown key; did you mean 'model'?"]),
]


@pytest.mark.parametrize(("overrides", "expected"), PROBLEMS)
def test_every_problem_is_named_with_its_path(path: Path, overrides: list[str], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load_run_config(path, overrides=overrides)
    heading, *lines = str(refused.value).splitlines()
    assert heading.startswith(f"{path}: ")
    assert len(lines) == len(expected)
    assert all(line.startswith(f"  {start}") for line, start in zip(lines, expected, strict=True)), lines


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.lanes=32"],
        ["optim.schedule={kind: wsd, warmup_samples: 200, decay_samples: 800}"],
        ["optim.schedule.warmup_samples=1000"],
        ["parallel.precision=bf16", "parallel.zero_stage=1"],
        ["parallel.recompute=full", "parallel.recompute_every=2"],
        ["evals.test.weights=ema", "optim.ema_decay=0.99"],
    ],
)
def test_what_is_just_allowed(path: Path, overrides: list[str]) -> None:
    load_run_config(path, overrides=overrides)


@pytest.mark.parametrize(
    ("override", "binds"),
    [
        ("seed=1", True),
        ("optim.lr=1e-4", True),
        ("train.num_samples=2000", True),
        ("train.global_batch=32", True),
        ("data.block=8", True),
        ("parallel.precision=bf16", True),
        ("name=other", False),
        ("output=elsewhere", False),
        ("data.num_workers=3", False),
        ("parallel.zero_stage=3", False),
        ("parallel.micro_batch=2", False),
        ("checkpoint.keep=9", False),
        ("train.log_every_steps=1", False),
        ("evals.test.path=elsewhere", False),
        ("evals={}", False),
    ],
)
def test_what_binds_a_resume(override: str, binds: bool) -> None:
    before = decode(RunConfig, values=VALUES, source="before")
    after = decode(RunConfig, values=apply_overrides(VALUES, overrides=[override]), source="after")
    changed = {key for key, value in binding_values(after) if dict(binding_values(before)).get(key) != value}
    assert changed == ({override.partition("=")[0]} if binds else set())
