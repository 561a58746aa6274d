import pytest
import torch
import torch.nn.functional as F
from timm.layers import Format

from tests.oracles import HuggingFaceOracle, TimmOracle, random_classifier
from vitscale.engine.recompute import apply_recompute
from vitscale.models import ViT, ViTConfig
from vitscale.nn.counter_hash import SEED_KEY
from vitscale.nn.init import initial_value, materialise
from vitscale.nn.resample import Grid, PositionMode, resample_positions

SMALL = {"image_size": 24, "patch_size": 8, "num_channels": 2, "width": 32, "depth": 2, "mlp_width": 72, "num_heads": 4}


def config(**changes: object) -> ViTConfig:
    return ViTConfig.model_validate({**SMALL, **changes})


def built(model: ViTConfig, *, seed: int = 0) -> ViT:
    with torch.device("meta"):
        vit = model.build()
    materialise(vit, seed=seed)
    return vit


@pytest.mark.parametrize(
    ("oracle", "changes"),
    [
        (TimmOracle, {}),
        (TimmOracle, {"gelu": "tanh"}),
        (TimmOracle, {"pooling": "mean"}),
        (TimmOracle, {"layer_norm_eps": 1e-3}),
        (TimmOracle, {"pooling": "mean", "gelu": "tanh", "layer_norm_eps": 1e-12}),
        (TimmOracle, {"norm": "rms", "qk_norm": True, "qkv_bias": "none", "positions": "none"}),
        (TimmOracle, {"proj_bias": False, "mlp_bias": False, "mlp_norm": True}),
        (HuggingFaceOracle, {}),
        (HuggingFaceOracle, {"gelu": "tanh"}),
        (HuggingFaceOracle, {"layer_norm_eps": 1e-12}),
    ],
)
def test_equals_the_oracle_in_logits_and_gradients(oracle: type, changes: dict) -> None:
    model = config(**changes)
    ours = random_classifier(model, num_classes=7)
    theirs = oracle(model, ours)
    image_BCHW = torch.randn(3, 2, 24, 24, generator=torch.Generator().manual_seed(1))
    label_B = torch.tensor([0, 6, 3])

    (our_logits, *distilled) = ours._logits(image_BCHW, draws=None)
    our_logits = torch.stack([our_logits, *distilled]).mean(0) if distilled else our_logits
    their_logits = theirs.logits(image_BCHW)
    assert our_logits.abs().max() > 0.1  # otherwise the comparison would show nothing
    assert (our_logits - their_logits).abs().max() <= 1e-6

    F.cross_entropy(our_logits, label_B).backward()
    F.cross_entropy(their_logits, label_B).backward()
    for name, parameter in ours.named_parameters():
        expected = theirs.gradient(name).reshape(parameter.shape)
        assert expected.abs().max() > 0, name
        assert (parameter.grad - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def test_every_setting_that_parity_varies_changes_the_logits() -> None:
    image_BCHW = torch.randn(2, 2, 24, 24, generator=torch.Generator().manual_seed(1))

    def logits(**changes: object) -> torch.Tensor:
        ours = random_classifier(config(**changes), num_classes=7)
        return ours.head(ours.backbone(image_BCHW).pooled_BD)

    plain = logits()
    for changes in (
        {"gelu": "tanh"},
        {"layer_norm_eps": 1e-3},
        {"pooling": "mean"},
        {"pooling": "map"},
        {"positions": "sincos2d_mae"},
        {"norm": "rms"},
        {"qk_norm": True},
        {"parallel": True},
        {"mlp": "swiglu"},
        {"mlp_norm": True},
        {"num_registers": 2},
    ):
        assert (logits(**changes) - plain).abs().max() > 1e-5, changes


def test_names_are_those_of_the_checkpoint() -> None:
    names = {name for name, _ in built(config(depth=1)).named_parameters()}
    block = {"norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"}
    layers = {"patch_embed", "norm", *(f"blocks.0.{layer}" for layer in block)}
    assert names == {"cls_token", "pos_embed"} | {f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")}


@pytest.mark.parametrize(("changes", "absent"), [({"pooling": "mean"}, "cls_token"), ({"positions": "sincos2d_mae"}, "pos_embed")])
def test_what_is_not_used_is_not_a_parameter(changes: dict, absent: str) -> None:
    assert absent not in dict(built(config(**changes)).named_parameters())


def test_has_no_buffers_and_a_recipe_for_every_parameter() -> None:
    with torch.device("meta"):
        vit = config(positions="sincos2d_mae").build()
    assert list(vit.buffers()) == []
    for name, parameter in vit.named_parameters():
        initial_value(parameter, name=name, shape=parameter.shape, seed=0)


def test_initial_weights_follow_the_seed_only() -> None:
    first, again, other = built(config()), built(config()), built(config(), seed=1)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert not torch.equal(a, c) or a.unique().numel() == 1, name
    assert not torch.equal(first.blocks[0].attn.qkv.weight, first.blocks[1].attn.qkv.weight)


def test_sincos_positions_are_added_to_the_patches() -> None:
    vit, learned = built(config(positions="sincos2d_mae", depth=1)), built(config(depth=1))
    image_BCHW, grid = torch.randn(1, 2, 24, 24), Grid(rows=3, columns=3)
    table = torch.cat([torch.zeros(1, 1, 32), vit.fixed_positions.like(vit.cls_token, grid=grid)], dim=1)
    learned.load_state_dict({**vit.state_dict(), "pos_embed": table})
    assert torch.equal(vit(image_BCHW).pooled_BD, learned(image_BCHW).pooled_BD)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_at_another_size_equals_timms_dynamic_image_size(pooling: str) -> None:
    model = ViTConfig(variant="mu/8", image_size=32, pooling=pooling)
    ours = random_classifier(model, num_classes=5)
    oracle = TimmOracle(model, ours).model
    oracle.patch_embed.strict_img_size = False
    oracle.patch_embed.flatten = False
    oracle.patch_embed.output_fmt = Format.NHWC
    oracle.dynamic_img_size = True
    image_BCHW = torch.randn(2, 3, 16, 48)
    torch.testing.assert_close(ours.head(ours.backbone(image_BCHW).pooled_BD), oracle(image_BCHW), rtol=0, atol=1e-5)


def test_a_learned_table_is_trained_through_its_resampling() -> None:
    vit = built(config())
    vit(torch.randn(1, 2, 16, 16)).tokens_BND.sum().backward()
    assert vit.pos_embed.grad.abs().sum() > 0


def test_pooled_is_the_normalised_class_token() -> None:
    vit = built(config())
    features = vit(torch.randn(2, 2, 24, 24))
    assert features.tokens_BND.shape == (2, 10, 32)
    torch.testing.assert_close(features.pooled_BD, vit.norm(features.tokens_BND)[:, 0])


def test_every_block_goes_through_the_block_runner() -> None:
    vit, seen = built(config()), []
    image_BCHW = torch.randn(1, 2, 24, 24)
    plain = vit(image_BCHW).pooled_BD

    def runner(index: int, block: torch.nn.Module, x_BND: torch.Tensor, /, **context: object) -> torch.Tensor:
        seen.append(index)
        return block(x_BND, **context)

    vit.block_runner = runner
    assert torch.equal(vit(image_BCHW).pooled_BD, plain)
    assert seen == [0, 1]


def test_computes_in_the_type_of_its_parameters() -> None:
    vit = built(config()).to(torch.bfloat16)
    image_BCHW = vit.normalise(torch.zeros(1, 2, 24, 24, dtype=torch.uint8))
    assert image_BCHW.dtype == torch.bfloat16
    assert vit(image_BCHW).pooled_BD.dtype == torch.bfloat16


RANDOM = {"stochastic_depth": 0.5, "dropout": 0.2, "patch_dropout": 0.4}


def seeds(*values: int) -> dict[str, torch.Tensor]:
    return {SEED_KEY: torch.tensor(values)}


@pytest.mark.parametrize("changes", [{}, {"parallel": True}, {"pooling": "mean"}, {"num_registers": 2, "distillation_token": True}])
def test_what_is_drawn_for_a_sample_does_not_depend_on_its_batch(changes: dict) -> None:
    vit = built(config(**RANDOM, **changes, depth=4))
    image_BCHW = torch.randn(6, 2, 24, 24)
    together = vit(image_BCHW, draws=seeds(4, 8, 15, 16, 23, 42))
    assert together.tokens_BND.shape[1] == vit.num_prefix + 5  # of 9 patches
    for index, seed in enumerate((4, 8, 15, 16, 23, 42)):
        alone = vit(image_BCHW[index : index + 1], draws=seeds(seed))
        torch.testing.assert_close(alone.pooled_BD[0], together.pooled_BD[index], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("setting", list(RANDOM))
def test_nothing_is_random_without_draws(setting: str) -> None:
    model, image_BCHW = config(**{setting: RANDOM[setting]}), torch.randn(4, 2, 24, 24)
    vit, plain = built(model), built(config())
    assert torch.equal(vit(image_BCHW).pooled_BD, plain(image_BCHW).pooled_BD)
    drawn, other = vit(image_BCHW, draws=seeds(1, 2, 3, 4)).pooled_BD, vit(image_BCHW, draws=seeds(5, 6, 7, 8)).pooled_BD
    assert not torch.allclose(drawn, other)
    assert vit.draw_keys == {SEED_KEY}


def test_recomputed_blocks_drop_what_they_dropped() -> None:
    grads = []
    for mode in ("none", "full"):
        vit = built(config(**RANDOM))
        apply_recompute(vit, mode=mode, every=1)
        vit(torch.ones(4, 2, 24, 24), draws=seeds(1, 2, 3, 4)).pooled_BD.square().sum().backward()
        grads.append([parameter.grad for parameter in vit.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_without_pooling_there_are_tokens_only() -> None:
    features = built(config(pooling="none"))(torch.randn(2, 2, 24, 24))
    assert (features.pooled_BD.shape, features.tokens_BND.shape) == ((2, 0), (2, 9, 32))


def test_registers_come_between_class_token_and_patches_and_have_no_position() -> None:
    with_registers, plain = built(config(num_registers=2, depth=1)), built(config(depth=1))
    image_BCHW = torch.randn(1, 2, 24, 24)
    grid = Grid(rows=3, columns=3)
    with torch.no_grad():
        with_registers.reg_token.fill_(7.0)
        plain.pos_embed.copy_(with_registers.pos_embed.normal_())
    expected_BND = plain._embed(plain.patch_embed(image_BCHW), grid=grid, seed_B=None, patches_BP=None)
    found_BND = with_registers._embed(with_registers.patch_embed(image_BCHW), grid=grid, seed_B=None, patches_BP=None)
    assert torch.equal(found_BND[:, [0, *range(3, 12)]], expected_BND)
    assert torch.equal(found_BND[:, 1:3], torch.full((1, 2, 32), 7.0))


@pytest.mark.parametrize("mode", ["timm", "dinov2", "google"])
def test_the_learned_table_is_resampled_by_the_models_mode(mode: PositionMode) -> None:
    sizes = {"image_size": 16, "patch_size": 4, "num_channels": 1, "width": 8, "depth": 1, "num_heads": 2}
    model = materialise(ViTConfig(**sizes, resampling=mode).build(), seed=0)
    larger = materialise(ViTConfig(**sizes | {"image_size": 24}).build(), seed=0)
    table = resample_positions(model.pos_embed, source=Grid(4, 4), target=Grid(6, 6), num_prefix=1, mode=mode)
    larger.load_state_dict({**model.state_dict(), "pos_embed": table})
    image = torch.randn(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(image).pooled_BD, larger(image).pooled_BD)
