import pytest
import torch
import torch.nn.functional as F
from timm.layers import Format

from tests.oracles import HuggingFaceOracle, TimmOracle, random_classifier
from vitscale.config import ConfigError, decode
from vitscale.models import ModelConfig, ViT, ViTConfig
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


def test_every_setting_that_parity_varies_changes_the_logits() -> None:
    image_BCHW = torch.randn(2, 2, 24, 24, generator=torch.Generator().manual_seed(1))

    def logits(**changes: object) -> torch.Tensor:
        ours = random_classifier(config(**changes), num_classes=7)
        return ours.head(ours.backbone(image_BCHW).pooled_BD)

    plain = logits()
    for changes in ({"gelu": "tanh"}, {"layer_norm_eps": 1e-3}, {"pooling": "mean"}, {"positions": "sincos2d_mae"}):
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


def test_sincos_positions_are_added_to_the_tokens() -> None:
    model = config(positions="sincos2d_mae", depth=1)
    vit = built(model)
    image_BCHW = torch.randn(1, 2, 24, 24)
    learned = built(config(depth=1))
    learned.load_state_dict({**vit.state_dict(), "pos_embed": vit.fixed_positions.like(vit.cls_token, grid=Grid(rows=3, columns=3))})
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

    def runner(index: int, block: torch.nn.Module, x_BND: torch.Tensor) -> torch.Tensor:
        seen.append(index)
        return block(x_BND)

    vit.block_runner = runner
    assert torch.equal(vit(image_BCHW).pooled_BD, plain)
    assert seen == [0, 1]


def test_computes_in_the_type_of_its_parameters() -> None:
    vit = built(config()).to(torch.bfloat16)
    image_BCHW = vit.normalise(torch.zeros(1, 2, 24, 24, dtype=torch.uint8))
    assert image_BCHW.dtype == torch.bfloat16
    assert vit(image_BCHW).pooled_BD.dtype == torch.bfloat16


def test_explicit_sizes_replace_the_variants() -> None:
    shape = ViTConfig(variant="S/16", image_size=28, patch_size=7, depth=3, num_channels=1).shape
    assert (shape.width, shape.depth, shape.mlp_width, shape.num_heads, shape.patch_size) == (384, 3, 1536, 6, 7)
    assert (shape.grid, shape.num_tokens) == (4, 17)


def test_mlp_width_defaults_to_four_times_the_width() -> None:
    assert ViTConfig(image_size=8, patch_size=4, width=24, depth=1, num_heads=2).shape.mlp_width == 96


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        (
            {"variant": "S/16", "image_size": 28},
            ["image_size: 28 is not a multiple of model.patch_size 16; use for example 32"],
        ),
        (
            {"image_size": 28, "width": 64},
            [
                "patch_size: required where no model.variant is given",
                "num_heads: required where no model.variant is given",
                "depth: required where no model.variant is given",
            ],
        ),
        ({"variant": "XL/16", "image_size": 32}, ["variant: 'XL' is not a known size; known: mu, Ti, S, M, B, L, So400m, H, g,"]),
        ({"variant": "S", "image_size": 32}, ["variant: 'S' names no patch size; write it after a slash, for example S/16"]),
        ({"variant": "S/16", "image_size": 32, "num_heads": 5}, ["width: 384 is not a multiple of model.num_heads 5"]),
        (
            {**SMALL, "width": 30, "num_heads": 5, "positions": "sincos2d_mae"},
            ["positions: sincos2d_mae needs a model.width of at least 8 that is a multiple of 4, not 30"],
        ),
        (
            {**SMALL, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.0]},
            [
                "image_mean: give one number, or one for each of the model.num_channels 2, not 3",
                "image_std: every number must be greater than 0",
            ],
        ),
    ],
)
def test_wrong_sizes_are_all_named(values: dict, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(ModelConfig, values=values, source="run.yaml")
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        assert line.startswith(problem)


@pytest.mark.parametrize("mode", ["timm", "dinov2", "google"])
def test_the_learned_table_is_resampled_by_the_models_mode(mode: PositionMode) -> None:
    sizes = {"image_size": 16, "patch_size": 4, "num_channels": 1, "width": 8, "depth": 1, "num_heads": 2}
    model = materialise(ViTConfig(**sizes, resampling=mode).build(), seed=0)
    larger = materialise(ViTConfig(**sizes | {"image_size": 24}).build(), seed=0)
    table = resample_positions(model.pos_embed, source=Grid(4, 4), target=Grid(6, 6), num_prefix=1, mode=mode)
    larger.load_state_dict({**model.state_dict(), "pos_embed": table})
    image = torch.randn(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(image).pooled_BD, larger(image).pooled_BD)
