"""Runs of Swin, SwinV2 and Hiera: they learn, a stopped one goes on bit for bit, ranks that share the weights train alike."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.data.packed import pack, png_bytes
from tests.launcher import run_ranks
from tests.train.tiny_run import assert_equal_tensors, checkpoint_tensors, losses, pack_tiny, stopped, tiny_config
from vitscale import api
from vitscale.config import StopRequested
from vitscale.nn.resample import Grid, resample_positions

SAMPLE = Path(__file__).parents[2] / "data_tools" / "sample"
WINDOWS = "patch_size: 1, width: 8, depths: [2, 1], num_heads: [1, 2], window_size: 4"
UNITS = "patch_size: 1, width: 8, depths: [1, 1], num_heads: 1, window_stages: 1, patch_dropout: 0.25"


def model(kind: str, sizes: str, *, image_size: int = 8) -> str:
    return f"model={{kind: {kind}, image_size: {image_size}, num_channels: 1, stochastic_depth: 0.3, {sizes}}}"


STAGES = {"swin": (1, 3), "swinv2": (3,), "hiera": (3,)}
MODELS = {"swin": model("swin", WINDOWS), "swinv2": model("swin", f"{WINDOWS}, version: 2"), "hiera": model("hiera", UNITS)}


@pytest.mark.parametrize("name", MODELS)
def test_a_stopped_run_goes_on_bit_for_bit_and_recomputes(tmp_path: Path, name: str) -> None:
    # The first two steps are on images of half the side, whose maps are smaller and their windows filled up.
    options = [MODELS[name], "train.num_samples=64", "stages=[{until_samples: 32, image_size: 4}]"]
    whole = tiny_config(tmp_path, "name=whole", *options)
    api.train(whole)
    parts = stopped(tmp_path, "name=parts", *options, "parallel.recompute=full", "parallel.recompute_every=2")
    api.train(parts)
    assert losses(parts.run_dir) == losses(whole.run_dir)
    assert_equal_tensors(checkpoint_tensors(parts.run_dir, step=4), checkpoint_tensors(whole.run_dir, step=4))


def test_another_image_and_window_start_from_resampled_tables_of_offsets(tmp_path: Path) -> None:
    source = tiny_config(tmp_path, "name=source", MODELS["swin"], "train.num_samples=32")
    api.train(source)
    smaller = model("swin", WINDOWS.replace("window_size: 4", "window_size: 3"), image_size=6)
    tuned = tiny_config(tmp_path, "name=tuned", smaller, f"init_from.path={source.run_dir}", "optim.lr=1e-12", "train.num_samples=32")
    api.train(tuned)
    old, new = checkpoint_tensors(source.run_dir, step=2), checkpoint_tensors(tuned.run_dir, step=2)
    for block in range(3):
        name = f"backbone.blocks.{block}.attn.position_bias.table"
        table_1HYX = old[name, "weight"].T.unflatten(1, (7, 7)).unsqueeze(0)
        expected_1HYX = F.interpolate(table_1HYX, size=(5, 5), mode="bicubic", align_corners=False)
        torch.testing.assert_close(new[name, "weight"], expected_1HYX[0].flatten(1).T, rtol=0, atol=1e-6)
    qkv = "backbone.blocks.1.attn.qkv.weight"
    torch.testing.assert_close(new[qkv, "weight"], old[qkv, "weight"], rtol=0, atol=1e-6)


def test_another_image_starts_from_resampled_positions(tmp_path: Path) -> None:
    source = tiny_config(tmp_path, "name=source", MODELS["hiera"], "train.num_samples=32")
    api.train(source)
    larger = model("hiera", UNITS, image_size=16)
    tuned = tiny_config(tmp_path, "name=tuned", larger, f"init_from.path={source.run_dir}", "optim.lr=1e-12", "train.num_samples=32")
    api.train(tuned)
    old, new = checkpoint_tensors(source.run_dir, step=2), checkpoint_tensors(tuned.run_dir, step=2)
    table = "backbone.pos_embed", "weight"
    expected = resample_positions(old[table], source=Grid(8, 8), target=Grid(16, 16), num_prefix=0, mode="hf")
    torch.testing.assert_close(new[table], expected, rtol=0, atol=1e-6)


@pytest.mark.dist
def test_it_trains_alike_on_one_rank_and_sharded_on_two(tmp_path: Path) -> None:
    pack_tiny(tmp_path)
    jobs = []
    for name, settings in MODELS.items():
        api.train(tiny_config(tmp_path, f"name={name}", settings))
        for stage in STAGES[name]:
            options = [f"name={name}-{stage}", settings, f"parallel.zero_stage={stage}", "parallel.micro_batch=4"]
            jobs += [{"do": "train", "overrides": options, "stop_at": stop} for stop in (3, None)]
    script = Path(__file__).with_name("rank_runs.py")
    assert run_ranks(script, tmp_path, json.dumps(jobs), num_ranks=2) == [[75, 0] * 4] * 2
    for name in MODELS:
        curve = losses(tmp_path / "runs" / name)
        for stage in STAGES[name]:
            assert losses(tmp_path / "runs" / f"{name}-{stage}") == pytest.approx(curve, rel=1e-5), (name, stage)


FASHION = {
    "swin": "patch_size: 4, width: 32, depths: [2, 2], num_heads: [2, 4], window_size: 4",
    "swinv2": "patch_size: 4, width: 32, depths: [2, 2], num_heads: [2, 4], window_size: 4, version: 2",
    "hiera": "patch_size: 7, width: 32, depths: [1, 2], num_heads: 2, window_stages: 1",
}


@pytest.mark.chaos
@pytest.mark.parametrize("name", FASHION)
def test_it_learns_fashion_mnist_and_resumes_bit_for_bit(tmp_path: Path, name: str) -> None:
    pack_sample(tmp_path / "shards")
    settings = model(name.removesuffix("v2"), FASHION[name], image_size=28)
    options = [settings, "train.num_samples=6400", "train.global_batch=32", "checkpoint.every_steps=100", "optim.lr=4e-3"]
    options += ["optim.schedule.warmup_samples=640", "objective.augment={}", "data.log_samples=false", "train.log_images=0"]
    whole, parts = (tiny_config(tmp_path, f"name={run}", *options) for run in ("whole", "parts"))
    api.train(whole)
    curve = losses(whole.run_dir)
    assert curve[1] == pytest.approx(np.log(10), abs=0.01)  # the head starts from zeros
    assert np.mean([curve[step] for step in range(191, 201)]) < 1.4
    with pytest.raises(StopRequested):
        api.train(parts, stop_at_step=90)
    api.train(parts)
    assert losses(parts.run_dir) == curve
    assert_equal_tensors(checkpoint_tensors(parts.run_dir, step=200), checkpoint_tensors(whole.run_dir, step=200))


def pack_sample(folder: Path) -> None:
    """The packaged sample of Fashion-MNIST as shards."""
    folder.mkdir()
    with gzip.open(SAMPLE / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read()[16:], dtype=np.uint8).reshape(-1, 28, 28)
    with gzip.open(SAMPLE / "train-labels-idx1-ubyte.gz") as file:
        labels = file.read()[8:]
    samples = [{"cls": str(label).encode(), "png": png_bytes(image)} for image, label in zip(pixels, labels, strict=True)]
    pack(folder, samples, samples_per_shard=200)
