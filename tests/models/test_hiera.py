import pytest
import torch
import torch.nn.functional as F

from tests.hiera_oracles import HuggingFaceHieraOracle, TimmHieraOracle
from tests.oracles import random_classifier
from vitscale.models import Hiera, HieraConfig
from vitscale.nn.counter_hash import SEED_KEY
from vitscale.nn.dropout import kept_patches
from vitscale.nn.init import materialise
from vitscale.objectives import Supervised

# Mask units of 4 x 4 tokens, then 2 x 2, then 1: within units, within them and pooled, among all and pooled.
SMALL = {
    "image_size": 16, "patch_size": 2, "num_channels": 2, "width": 12, "depths": (1, 2, 1), "num_heads": 2, "window_stages": 1,
    "mlp_ratio": 2.0,
}  # fmt: skip
ABSWIN = {"window_positions": True, "position_grid": 3, "layer_scale": 0.3, "shortcut": "concatenate", "resampling": "timm"}


def config(**changes: object) -> HieraConfig:
    return HieraConfig.model_validate({**SMALL, **changes})


def classifier(model: HieraConfig) -> Supervised:
    """One in which attention and the MLPs are far from linear, so that their form matters."""
    objective = random_classifier(model, num_classes=7)
    for name, parameter in objective.named_parameters():
        if name.endswith(("mlp.fc1.weight", "qkv.weight")):
            parameter.data *= 4
    return objective


def images(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(3, 2, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("oracle", "changes"),
    [
        (TimmHieraOracle, {}),
        (TimmHieraOracle, {"depths": (2, 1), "window_stages": 2, "layer_scale": 0.2}),
        (TimmHieraOracle, {**ABSWIN, "window_stages": 0}),
        (TimmHieraOracle, {**ABSWIN, "shortcut": "project", "window_stages": 2}),
        (HuggingFaceHieraOracle, {}),
        (HuggingFaceHieraOracle, {"depths": (1, 1, 1, 1), "patch_size": 1, "window_stages": 2, "gelu": "tanh", "layer_norm_eps": 1e-3}),
    ],
)
def test_equals_the_oracle_in_logits_and_gradients(oracle: type, changes: dict) -> None:
    model = config(**changes)
    ours = classifier(model)
    check_parity(ours, oracle(model, ours), image_BCHW=images())


@pytest.mark.parametrize(("height", "width"), [(24, 16), (16, 32)])
def test_at_another_size_equals_hugging_faces_resampling(height: int, width: int) -> None:
    model = config()
    ours = classifier(model)
    check_parity(ours, HuggingFaceHieraOracle(model, ours), image_BCHW=images(height, width))


def test_at_another_size_equals_timms_resampling_of_the_table_beside_that_of_the_units() -> None:
    model = config(**ABSWIN)
    ours = classifier(model)
    check_parity(ours, TimmHieraOracle(model, ours, size=(16, 24)), image_BCHW=images(16, 24))


def check_parity(ours: Supervised, theirs: object, *, image_BCHW: torch.Tensor) -> None:
    label_B = torch.tensor([0, 6, 3])
    our_logits = ours.head(ours.backbone(image_BCHW).pooled_BD)
    their_logits = theirs.logits(image_BCHW)
    assert our_logits.abs().max() > 0.1  # otherwise the comparison would show nothing
    assert (our_logits - their_logits).abs().max() <= 1e-6

    F.cross_entropy(our_logits, label_B).backward()
    F.cross_entropy(their_logits, label_B).backward()
    for name, parameter in ours.named_parameters():
        expected = theirs.gradient(name, parameter)
        assert expected.abs().max() > 0, name
        assert (parameter.grad - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def test_every_setting_that_parity_varies_changes_the_logits() -> None:
    def logits(**changes: object) -> torch.Tensor:
        ours = classifier(config(**changes))
        return ours.head(ours.backbone(images()).pooled_BD)

    plain = logits()
    for changes in ({"gelu": "tanh"}, {"window_stages": 2}, {"shortcut": "concatenate"}, {"layer_norm_eps": 1e-3}, {"layer_scale": 0.5}):
        assert (logits(**changes) - plain).abs().max() > 1e-5, changes


def test_has_no_buffers_and_starts_as_the_reference_does() -> None:
    def built(seed: int) -> Hiera:
        with torch.device("meta"):
            hiera = config(width=64, num_heads=4, window_positions=True).build()
        materialise(hiera, seed=seed)
        return hiera

    hiera, again, other = built(0), built(0), built(1)
    assert list(hiera.buffers()) == []
    for (name, value), same, different in zip(hiera.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(value, same), name
        if value.ndim >= 2:
            assert not torch.equal(value, different), name
            assert value.std().item() == pytest.approx(0.02, rel=0.15), name
        elif name == "patch_embed.proj.bias":
            assert not value.any()
        else:
            assert value.eq(1.0 if "norm" in name and name.endswith("weight") else 0.02).all(), name


def test_tokens_see_their_unit_until_attention_is_among_all() -> None:
    def reach(**changes: object) -> torch.Tensor:
        """The patches that the first unit's token depends on."""
        hiera = classifier(config(**changes)).backbone
        image_BCHW = images()[:1].requires_grad_()
        hiera(image_BCHW).tokens_BND[0, 0].sum().backward()
        return image_BCHW.grad[0].abs().sum(0).unflatten(0, (8, 2)).unflatten(2, (8, 2)).sum((1, 3)) > 0

    within = reach(window_stages=3)
    assert within[:4, :4].all()
    assert not within[5:].any()  # patches overlap by a pixel
    assert not within[:, 5:].any()
    assert reach(window_stages=1).all()


def test_the_runner_recomputes_every_block() -> None:
    hiera, seen = classifier(config()).backbone, []
    plain = hiera(images()).pooled_BD

    def runner(index: int, block: torch.nn.Module, x: torch.Tensor, /, **context: object) -> torch.Tensor:
        seen.append(index)
        return block(x, **context)

    hiera.block_runner = runner
    assert torch.equal(hiera(images()).pooled_BD, plain)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("shortcut", ["project", "concatenate"])
def test_a_sample_s_stochastic_depth_depends_on_its_seed_alone(shortcut: str) -> None:
    model = config(stochastic_depth=0.9, shortcut=shortcut)
    assert set(model.draw_sources) == {SEED_KEY}
    assert config().draw_sources == {}
    hiera = classifier(model).backbone
    seed_B = torch.tensor([1, 2, 3])
    plain = hiera(images()).pooled_BD
    dropped = hiera(images(), draws={SEED_KEY: seed_B}).pooled_BD
    assert ((dropped - plain).abs().amax(dim=1) > 1e-3).all()
    for sample in range(3):
        alone = hiera(images()[sample : sample + 1], draws={SEED_KEY: seed_B[sample : sample + 1]}).pooled_BD
        torch.testing.assert_close(alone[0], dropped[sample], rtol=0, atol=1e-6)
    dropped.sum().backward()
    assert all(parameter.grad is not None for parameter in hiera.parameters())


def test_units_left_out_in_training_equal_timms_mask() -> None:
    model = config(patch_dropout=0.4)
    ours = classifier(model)
    theirs = TimmHieraOracle(model, ours)
    seed_B, image_BCHW = torch.tensor([5, 6, 7]), images()
    kept_BK = kept_patches(seed_B, num_patches=4, rate=0.4)
    assert kept_BK.shape == (3, 2)
    mask_BU = torch.zeros(3, 4, dtype=torch.bool).scatter_(1, kept_BK, True)
    features = ours.backbone(image_BCHW, draws={SEED_KEY: seed_B})
    assert features.tokens_BND.shape[1] == 2
    their_logits = theirs.model.forward_head(theirs.model(image_BCHW, mask=mask_BU))
    assert (ours.head(features.pooled_BD) - their_logits).abs().max() <= 1e-6
    unseen_BCHW = image_BCHW + ~mask_BU.view(3, 1, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(ours.backbone(unseen_BCHW, draws={SEED_KEY: seed_B}).pooled_BD, features.pooled_BD)
    assert torch.equal(ours.backbone(image_BCHW, draws={}).pooled_BD, ours.backbone(image_BCHW).pooled_BD)


def test_computes_in_the_type_of_its_parameters() -> None:
    hiera = classifier(config(window_positions=True, position_grid=3)).backbone.to(torch.bfloat16)
    assert hiera(hiera.normalise(torch.zeros(1, 2, 16, 16, dtype=torch.uint8))).pooled_BD.dtype == torch.bfloat16
