"""Spending: each sample counted once at any world size, with the FLOPs of its own tokens."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.data.packed import pack_images
from vitscale.data.dataset import Dataset, open_dataset
from vitscale.data.types import Batch
from vitscale.dist.ranks import Ranks
from vitscale.evals import SpendingConfig, SpendingEval
from vitscale.models import ViTConfig
from vitscale.objectives.base import Spending

MODEL = ViTConfig.model_validate(
    {"image_size": 8, "num_channels": 1, "patch_size": 4, "width": 8, "depth": 2, "num_heads": 1, "pooling": "mean", "halting": {}}
)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    pack_images(tmp_path, num_samples=21, samples_per_shard=8, size=8)
    return open_dataset(str(tmp_path))


def spend(batch: Batch) -> Spending:
    """A model that is the surer, the fewer tokens it takes; which is a matter of the first pixel."""
    pixel_B = batch["image"].flatten(1)[:, 0].long()
    tokens_B = pixel_B % 5
    logits_BK = torch.zeros(len(pixel_B), 10)
    logits_BK[torch.arange(len(pixel_B)), pixel_B % 10] = 5 - tokens_B.float()
    return Spending(logits_BK, torch.stack([torch.full_like(tokens_B, 4), tokens_B], dim=1))


def evaluation(dataset: Dataset, *, rank: int = 0, world_size: int = 1, batch_size: int = 8, model: ViTConfig = MODEL) -> SpendingEval:
    config = SpendingConfig(path=str(dataset.storage.root), batch_size=batch_size)
    return SpendingEval(config, dataset=dataset, model=model, ranks=Ranks(rank=rank, world_size=world_size))


def test_an_image_is_charged_for_its_own_tokens(dataset: Dataset) -> None:
    found = evaluation(dataset).run(spend)
    tokens = torch.cat([spending.tokens_BL[batch["label"] >= 0] for batch, spending in evaluation(dataset).results(spend)])
    assert len(tokens) == 21
    table = MODEL.shape.flops_by_tokens()[0]
    other = MODEL.shape.forward_flops - 2 * table[4]
    flops = [(other + table[4] + table[last]) / 1e9 for last in tokens[:, 1].tolist()]
    assert found["gflops"] == pytest.approx(sum(flops) / 21)
    assert found["gflops_p50"] == pytest.approx(sorted(flops)[10])
    assert found["gflops_surest"] == pytest.approx(sum(sorted(flops)[:5]) / 5)
    assert found["gflops_unsurest"] == pytest.approx(sum(sorted(flops)[-5:]) / 5)
    assert found["blocks_per_token"] == pytest.approx(tokens.sum().item() / 21 / 4)
    assert found["num_samples"] == 21


def test_patches_that_only_training_leaves_out_are_charged_for(dataset: Dataset) -> None:
    dropping = MODEL.model_copy(update={"patch_dropout": 0.5})
    assert evaluation(dataset, model=dropping).run(spend) == evaluation(dataset).run(spend)


@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_figures_do_not_depend_on_ranks_or_batches(dataset: Dataset, batch_size: int) -> None:
    whole, barrier, parts = evaluation(dataset).run(spend), threading.Barrier(3), {}

    def gathered(rows: list[list[float]]) -> list[list[list[float]]]:
        parts[threading.get_ident()] = rows
        barrier.wait()
        return list(parts.values())

    with mock.patch("vitscale.evals.spending.gather_json", gathered), ThreadPoolExecutor(3) as pool:
        ranks = [evaluation(dataset, rank=rank, world_size=3, batch_size=batch_size) for rank in range(3)]
        for found in pool.map(lambda one: one.run(spend), ranks):
            assert found == pytest.approx(whole)
