import re

import pytest
import torch
import torch.nn.functional as F

from tests.oracles import random_classifier
from tests.swin_oracles import HuggingFaceSwinOracle, TimmSwinOracle
from vitscale.models import Swin, SwinConfig
from vitscale.nn.counter_hash import SEED_KEY
from vitscale.nn.init import initial_value, materialise
from vitscale.nn.position_table import fit_table, position_tables
from vitscale.objectives import Supervised, SupervisedConfig

# Stages of 8 x 8 and 4 x 4 tokens: the first with four windows and a shift, the second with one window.
SMALL = {"image_size": 16, "patch_size": 2, "num_channels": 2, "width": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
# Maps of 7, 4 and 2 tokens a side: windows that are padded, an odd side that is merged, and maps smaller than a window.
THREE_STAGES = {"image_size": 14, "depths": (2, 2, 1), "num_heads": (2, 4, 4), "mlp_ratio": 1.5, "window_size": 5}
VERSIONS = (1, 2)


def config(**changes: object) -> SwinConfig:
    return SwinConfig.model_validate({**SMALL, **changes})


def built(model: SwinConfig, *, seed: int = 0) -> Swin:
    with torch.device("meta"):
        swin = model.build()
    materialise(swin, seed=seed)
    return swin


def classifier(model: SwinConfig, *, num_classes: int = 7) -> Supervised:
    """One in which the MLPs are far from linear, so that their form matters, and no block is near the identity."""
    # A logit scale's gradient is the sum over all pairs of tokens. With this seed none cancels so far that fp32 rounds it by over 1e-5.
    objective = random_classifier(model, num_classes=num_classes, seed=7)
    for name, parameter in objective.named_parameters():
        if name.endswith("mlp.fc1.weight"):
            parameter.data *= 3
        if model.version == 2 and re.fullmatch(r"backbone\.blocks\.\d+\.norm\d\.weight", name):
            parameter.data += 1
    return objective


def images(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(3, 2, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("oracle", "changes"),
    [
        (TimmSwinOracle, {}),
        (TimmSwinOracle, {"window_size": 3, "window_padding": "after_shift"}),
        (TimmSwinOracle, {**THREE_STAGES, "window_padding": "after_shift"}),
        (HuggingFaceSwinOracle, {}),
        (HuggingFaceSwinOracle, {"window_size": 3, "gelu": "tanh"}),
        # Its windows are as large as the map or smaller, and its sides even: elsewhere it builds other windows than it runs.
        (HuggingFaceSwinOracle, {"image_size": 24, "window_size": 5}),
    ],
)
def test_equals_the_oracle_in_logits_and_gradients(oracle: type, changes: dict, version: int) -> None:
    check_parity(oracle, config(version=version, **changes))


@pytest.mark.parametrize("oracle", [TimmSwinOracle, HuggingFaceSwinOracle])
def test_the_windows_of_pre_training_are_the_unit_of_offsets(oracle: type) -> None:
    check_parity(oracle, config(version=2, image_size=24, window_size=6, pretrained_window_sizes=(4, 2)))


def check_parity(oracle: type, model: SwinConfig) -> None:
    ours = classifier(model)
    theirs = oracle(model, ours)
    image_BCHW, label_B = images(model.image_size, model.image_size), torch.tensor([0, 6, 3])

    our_logits = ours.head(ours.backbone(image_BCHW).pooled_BD)
    their_logits = theirs.logits(image_BCHW)
    assert our_logits.abs().max() > 0.1  # otherwise the comparison would show nothing
    assert (our_logits - their_logits).abs().max() <= 1e-6

    F.cross_entropy(our_logits, label_B).backward()
    F.cross_entropy(their_logits, label_B).backward()
    for name, parameter in ours.named_parameters():
        expected = theirs.gradient(name).reshape(parameter.shape)
        assert expected.abs().max() > 0, name
        assert (parameter.grad - expected).abs().max() <= 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize("oracle", [TimmSwinOracle, HuggingFaceSwinOracle])
def test_what_version_2_differs_by_in_fp32_is_rounding(oracle: type) -> None:
    model = config(version=2)
    ours = classifier(model)
    theirs = oracle(model, ours)
    ours.double()
    theirs.model.double()
    our_logits = ours.head(ours.backbone(images().double()).pooled_BD)
    their_logits = theirs.logits(images().double())
    assert (our_logits - their_logits).abs().max() <= 1e-14
    our_logits[0, 0].backward()
    their_logits[0, 0].backward()
    for name, parameter in ours.backbone.named_parameters(prefix="backbone"):
        expected = theirs.gradient(name).reshape(parameter.shape)
        assert (parameter.grad - expected).abs().max() <= 1e-11 * expected.abs().max(), name


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("height", "width"), [(24, 16), (32, 20), (8, 12)])
def test_at_another_size_equals_timms_dynamic_image_size(version: int, height: int, width: int) -> None:
    model = config(version=version, window_padding="after_shift")
    ours = classifier(model)
    oracle = TimmSwinOracle(model, ours, dynamic=True)
    image_BCHW = images(height, width)
    features = ours.backbone(image_BCHW)
    assert features.tokens_BND.shape == (3, -(-height // 4) * -(-width // 4), 32)
    assert (ours.head(features.pooled_BD) - oracle.logits(image_BCHW)).abs().max() <= 1e-6


def test_every_setting_that_parity_varies_changes_the_logits() -> None:
    def logits(**changes: object) -> torch.Tensor:
        ours = classifier(config(**{"version": 2, "window_size": 3, **changes}))
        return ours.head(ours.backbone(images()).pooled_BD)

    plain = logits()
    for changes in (
        {"gelu": "tanh"},
        {"window_size": 4},
        {"window_padding": "after_shift"},
        {"pretrained_window_sizes": (5, 5)},
        {"layer_norm_eps": 1e-3},
    ):
        assert (logits(**changes) - plain).abs().max() > 1e-5, changes


@pytest.mark.parametrize("version", VERSIONS)
def test_names_are_those_of_the_checkpoint(version: int) -> None:
    names = {name for name, _ in built(config(version=version, depths=(1, 1))).named_parameters()}
    layers = {"patch_embed", "patch_norm", "merges.0.norm", "norm"}
    for block in ("blocks.0", "blocks.1"):
        layers |= {f"{block}.{layer}" for layer in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")}
    expected = {f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")} | {"merges.0.reduction.weight"}
    for block in ("blocks.0", "blocks.1"):
        if version == 1:
            own = ("qkv.weight", "qkv.bias", "position_bias.table")
        else:
            bias_network = ("position_bias.fc1.weight", "position_bias.fc1.bias", "position_bias.fc2.weight")
            own = ("qkv.weight", "qkv.q_bias", "qkv.v_bias", "logit_scale", *bias_network)
        expected |= {f"{block}.attn.{leaf}" for leaf in own}
    assert names == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_has_no_buffers_and_starts_as_the_reference_does(version: int) -> None:
    swin = built(config(version=version, width=64))
    assert list(swin.buffers()) == []
    again, other = built(config(version=version, width=64)), built(config(version=version, width=64), seed=1)
    for (name, value), same, different in zip(swin.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(value, same), name
        if name.endswith("logit_scale"):
            assert value.exp().allclose(torch.tensor(10.0)), name
        elif value.ndim == 2 and not name.startswith("patch_embed"):
            assert not torch.equal(value, different), name
            assert value.std().item() == pytest.approx(0.02, rel=0.15), name
        elif value.ndim == 1:
            is_scale = "norm" in name and name.endswith("weight")
            starts_at_zero = version == 2 and name.startswith("blocks")
            assert value.eq(1.0 if is_scale and not starts_at_zero else 0.0).all(), name


def test_every_parameter_has_a_recipe_on_the_meta_device() -> None:
    for version in VERSIONS:
        with torch.device("meta"):
            swin = config(version=version).build()
        for name, parameter in swin.named_parameters():
            initial_value(parameter, name=name, shape=parameter.shape, seed=0)


@pytest.mark.parametrize("version", VERSIONS)
def test_tokens_see_their_neighbours_across_windows_only_by_the_shift(version: int) -> None:
    def reach(row: int, column: int, *, depth: int) -> torch.Tensor:
        """Which tokens of a map of 8 x 8 with windows of 4 the output of a token depends on."""
        swin = classifier(config(version=version, depths=(depth,), num_heads=(2,))).backbone
        image_BCHW = images()[:1].requires_grad_()
        swin(image_BCHW).tokens_BND[0, 8 * row + column].sum().backward()
        # What is masked by -100 is not quite zero.
        return image_BCHW.grad[0].abs().sum(0).unflatten(0, (8, 2)).unflatten(2, (8, 2)).sum((1, 3)) > 1e-20

    own_window = torch.zeros(8, 8, dtype=torch.bool)
    own_window[:4, :4] = True
    assert torch.equal(reach(3, 3, depth=1), own_window)
    # The shift puts rows and columns 2 to 5 into one window, which has tokens of all four.
    assert reach(3, 3, depth=2).all()
    # In the corner it joins rows 0 and 1 with rows 6 and 7 of the other end, which the mask keeps apart.
    assert torch.equal(reach(0, 0, depth=2), own_window)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_runner_recomputes_every_block(version: int) -> None:
    swin, seen = built(config(version=version)), []
    plain = swin(images()).pooled_BD

    def runner(index: int, block: torch.nn.Module, x: torch.Tensor, /, **context: object) -> torch.Tensor:
        seen.append(index)
        return block(x, **context)

    swin.block_runner = runner
    assert torch.equal(swin(images()).pooled_BD, plain)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sample_s_stochastic_depth_depends_on_its_seed_alone(version: int) -> None:
    model = config(version=version, stochastic_depth=0.9)
    assert model.drop_rates == pytest.approx((0.0, 0.3, 0.6, 0.9))
    assert set(model.draw_sources) == {SEED_KEY}
    assert config(version=version).draw_sources == {}
    swin = classifier(model).backbone
    seed_B = torch.tensor([1, 2, 3])
    plain = swin(images()).pooled_BD
    dropped = swin(images(), draws={SEED_KEY: seed_B}).pooled_BD
    assert ((dropped - plain).abs().amax(dim=1) > 1e-3).all()
    for sample in range(3):
        alone = swin(images()[sample : sample + 1], draws={SEED_KEY: seed_B[sample : sample + 1]}).pooled_BD
        torch.testing.assert_close(alone[0], dropped[sample], rtol=0, atol=1e-6)
    assert torch.equal(swin(images(), draws={}).pooled_BD, plain)


def test_branches_that_no_sample_keeps_get_zero_gradients() -> None:
    swin = classifier(config(stochastic_depth=0.999)).backbone
    swin(images(), draws={SEED_KEY: torch.tensor([1, 2, 3])}).pooled_BD.sum().backward()
    assert all(parameter.grad is not None for parameter in swin.parameters())
    assert swin.blocks[3].mlp.fc2.weight.grad.eq(0).all()


def test_computes_in_the_type_of_its_parameters() -> None:
    for version in VERSIONS:
        swin = built(config(version=version)).to(torch.bfloat16)
        image_BCHW = swin.normalise(torch.zeros(1, 2, 16, 16, dtype=torch.uint8))
        assert swin(image_BCHW).pooled_BD.dtype == torch.bfloat16


def test_trains_after_it_was_evaluated_in_inference_mode() -> None:
    swin = built(config())
    with torch.inference_mode():
        swin(images())
    swin(images()).pooled_BD.sum().backward()


@pytest.mark.parametrize("version", VERSIONS)
def test_other_windows_and_images_equal_timms_resizing(version: int) -> None:
    """As `init_from` fits the tables of version 1; version 2 measures offsets in the windows of pre-training."""
    source, target = config(version=version), config(version=version, image_size=24, window_size=6)
    if version == 2:
        target = target.model_copy(update={"pretrained_window_sizes": tuple(stage.window for stage in source.shape.stages)})
        source = source.model_copy(update={"pretrained_window_sizes": target.pretrained_window_sizes})
    ours = classifier(source)
    theirs = TimmSwinOracle(source, ours)
    theirs.model.set_input_size(img_size=(24, 24), window_size=6)
    resized = SupervisedConfig(num_classes=7).build(target.build())
    tables, new_tables = (position_tables(SupervisedConfig(num_classes=7).build(model.build())) for model in (source, target))
    assert len(tables) == (4 if version == 1 else 0)
    state = {name: value.detach() for name, value in ours.named_parameters()}
    state |= {name: fit_table(state[name], source=tables[name], target=new_tables[name], mode="timm") for name in tables}
    resized.load_state_dict(state)
    image_BCHW = images(24, 24)
    our_logits = resized.head(resized.backbone(image_BCHW).pooled_BD)
    assert (our_logits - theirs.logits(image_BCHW)).abs().max() <= 1e-6
    shortened = ours.head(ours.backbone(image_BCHW).pooled_BD)
    assert (our_logits - shortened).abs().max() > 1e-4
