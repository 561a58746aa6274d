import pytest
import torch
import torch.nn.functional as F

from tests.oracles import TimmOracle, random_classifier
from tests.token_merging_oracle import timm_merging_features
from vitscale.engine.recompute import apply_recompute
from vitscale.models import ViTConfig
from vitscale.nn.counter_hash import SEED_KEY

SMALL = {"image_size": 32, "patch_size": 8, "num_channels": 2, "width": 32, "depth": 3, "mlp_width": 40, "num_heads": 4}
MERGING = {"per_block": 3, "schedule": "decreasing"}


def config(**changes: object) -> ViTConfig:
    return ViTConfig.model_validate({**SMALL, **changes})


def images(count: int = 3, *, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 2, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("changes", [{}, {"num_registers": 2, "layer_scale": 0.5, "prefix_positions": False}, {"proportional": False}])
def test_equals_merging_in_timms_layers_in_logits_and_gradients(changes: dict) -> None:
    model, is_proportional = dict(changes), changes.get("proportional", True)
    model.pop("proportional", None)
    plain = config(**model)
    ours = random_classifier(config(**model, token_merging={**MERGING, "proportional_attention": is_proportional}), num_classes=7)
    theirs = TimmOracle(plain, ours)
    our_logits = ours._logits(images(), draws=None)[0]
    features_BD = timm_merging_features(theirs.model, images(), wanted=(6, 3, 0), proportional=is_proportional)
    their_logits = theirs.model.head(features_BD)
    assert (our_logits - theirs.logits(images())).abs().max() > 1e-3  # merging has an effect
    assert (our_logits - their_logits).abs().max() <= 1e-6
    label_B = torch.tensor([0, 6, 3])
    F.cross_entropy(our_logits, label_B).backward()
    F.cross_entropy(their_logits, label_B).backward()
    for name, parameter in ours.named_parameters():
        expected = theirs.gradient(name).reshape(parameter.shape)
        assert (parameter.grad - expected).abs().max() <= 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize("pooling", ["cls", "mean", "map"])
def test_merging_nothing_is_the_plain_model_to_the_bit(pooling: str) -> None:
    plain, merging = (random_classifier(config(pooling=pooling, token_merging=m), num_classes=7) for m in (None, {"per_block": 0}))
    for objective in (plain, merging):
        objective._logits(images(), draws=None)[0].square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), merging.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("pooling", ["mean", "map"])
@pytest.mark.parametrize("norm_place", ["tokens", "pooled"])
def test_pooling_counts_a_token_as_the_patches_that_it_stands_for(pooling: str, norm_place: str) -> None:
    vit = random_classifier(config(pooling=pooling, norm_place=norm_place, token_merging=MERGING), num_classes=7).backbone
    x_BND, sizes_BN = torch.randn(2, 3, 32), torch.tensor([[1.0, 3.0, 1.0]]).expand(2, -1)
    found = vit._pool(x_BND, sizes_BN=sizes_BN)
    torch.testing.assert_close(found, vit._pool(x_BND[:, [0, 1, 1, 1, 2]], sizes_BN=None))
    assert (found - vit._pool(x_BND, sizes_BN=None)).abs().max() > 1e-3


def test_merges_at_another_size_and_never_more_than_half_of_what_is_left() -> None:
    vit = random_classifier(config(token_merging={"per_block": 6}), num_classes=7).backbone
    assert vit(images(1, size=48)).tokens_BND.shape[1] == 1 + 36 - 18
    assert vit(images(1)).tokens_BND.shape[1] == 1 + 16 - 6 - 5 - 2
    assert vit(images(1, size=8)).tokens_BND.shape[1] == 1 + 1


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_recomputed_blocks_merge_what_they_merged(mode: str) -> None:
    grads = []
    for recompute in ("none", mode):
        model = config(token_merging=MERGING, stochastic_depth=0.5, dropout=0.1, patch_dropout=0.2)
        vit = random_classifier(model, num_classes=7).backbone
        apply_recompute(vit, mode=recompute, every=1)
        vit(images(), draws={SEED_KEY: torch.tensor([4, 8, 15])}).pooled_BD.square().sum().backward()
        grads.append([parameter.grad for parameter in vit.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_what_is_merged_in_an_image_does_not_depend_on_its_batch() -> None:
    model = config(token_merging=MERGING, stochastic_depth=0.5, dropout=0.1)
    vit, seeds = random_classifier(model, num_classes=7).backbone, torch.tensor([4, 8, 15])
    together = vit(images(), draws={SEED_KEY: seeds})
    for index in range(3):
        alone = vit(images()[index : index + 1], draws={SEED_KEY: seeds[index : index + 1]})
        torch.testing.assert_close(alone.pooled_BD[0], together.pooled_BD[index], rtol=1e-4, atol=1e-5)
