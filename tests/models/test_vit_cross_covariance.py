"""Vision transformers whose attention is between channels."""

import pytest
import torch
import torch.nn.functional as F

from tests.oracles import random_classifier
from vitscale.engine.recompute import apply_recompute
from vitscale.models import ViT, ViTConfig
from vitscale.nn.counter_hash import SEED_KEY
from vitscale.nn.init import materialise
from vitscale.run_config import RecomputeMode

SIZES = {"image_size": 24, "patch_size": 4, "num_channels": 2, "width": 32, "depth": 2, "mlp_width": 48, "num_heads": 4, "pooling": "mean"}


def built(**changes: object) -> ViT:
    config = ViTConfig.model_validate({**SIZES, "attention": "cross_covariance", **changes})
    with torch.device("meta"):
        vit = config.build()
    materialise(vit, seed=0)
    return vit


def test_the_cost_of_attention_grows_with_the_tokens_not_with_their_square() -> None:
    small, large = (ViTConfig.model_validate({**SIZES, "attention": "cross_covariance", "image_size": size}).shape for size in (24, 48))
    assert large.num_tokens == 4 * small.num_tokens
    assert large.forward_flops == 4 * small.forward_flops


@pytest.mark.parametrize("pooling", ["mean", "map", "none"])
def test_takes_images_that_are_not_square(pooling: str) -> None:
    assert built(pooling=pooling)(torch.randn(2, 2, 16, 32)).tokens_BND.shape == (2, 32, 32)


def test_what_is_dropped_for_a_sample_does_not_depend_on_its_batch() -> None:
    vit = built(stochastic_depth=0.5, stochastic_depth_schedule="constant", dropout=0.2)
    image_BCHW, seed_B = torch.randn(4, 2, 24, 24), torch.tensor([4, 8, 15, 16])
    together = vit(image_BCHW, draws={SEED_KEY: seed_B}).pooled_BD
    for index in range(4):
        alone = vit(image_BCHW[index : index + 1], draws={SEED_KEY: seed_B[index : index + 1]}).pooled_BD
        torch.testing.assert_close(alone[0], together[index], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, vit(image_BCHW).pooled_BD)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputed_blocks_have_the_same_gradients(mode: RecomputeMode) -> None:
    grads = []
    for chosen in ("none", mode):
        vit = built()
        apply_recompute(vit, mode=chosen, every=1)
        vit(torch.ones(1, 2, 24, 24).cumsum(3)).pooled_BD.square().sum().backward()
        grads.append([parameter.grad for parameter in vit.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_few_images_are_learned() -> None:
    ours = random_classifier(ViTConfig.model_validate({**SIZES, "attention": "cross_covariance"}), num_classes=4)
    image_BCHW, label_B = torch.randn(8, 2, 24, 24, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(ours._logits(image_BCHW, draws=None)[0], label_B)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
