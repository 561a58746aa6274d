import pytest

from vitscale.config import ConfigError, decode
from vitscale.models import ViTConfig

SMALL = {"image_size": 24, "patch_size": 8, "num_channels": 2, "width": 32, "depth": 2, "mlp_width": 72, "num_heads": 4}


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
        ({"variant": "XL/16", "image_size": 32}, ["variant: 'XL' is not a known size or model; sizes: mu, Ti, S, M, B, L, So400m, H, g,"]),
        (
            {**SMALL, "pooling": "mean", "distillation_token": True},
            ["distillation_token: a distillation token stands beside"],
        ),
        ({**SMALL, "class_token": False}, ["class_token: model.pooling cls takes the class token; leave it out"]),
        ({**SMALL, "window": 2}, ["window: windows hold patches, and model.pooling cls adds a token that lies in none"]),
        (
            {**SMALL, "pooling": "mean", "num_registers": 1, "window": 2},
            ["window: windows hold patches, and model.num_registers adds a token that lies in none"],
        ),
        ({**SMALL, "global_blocks": [1]}, ["global_blocks: every block attends to all tokens without a model.window"]),
        (
            {**SMALL, "pooling": "mean", "window": 2, "global_blocks": [0, 2], "patch_dropout": 0.5},
            ["global_blocks: 2 is no block of 2; they are numbered from 0 to 1", "patch_dropout: leaves holes in the windows"],
        ),
        ({**SMALL, "mlp": "swiglu", "gelu": "tanh"}, ["gelu: has no effect on model.mlp swiglu, which is gated by SiLU"]),
        ({**SMALL, "mlp": "swiglu64"}, ["mlp_width: 72 is not a multiple of 64, which model.mlp swiglu64 has; use 128, or swiglu"]),
        ({**SMALL, "positions": "none", "prefix_positions": False}, ["prefix_positions: has an effect on learned positions only, not on"]),
        ({**SMALL, "pooling": "mean", "prefix_positions": False}, ["prefix_positions: has no effect without class or distillation token"]),
        ({**SMALL, "pooling": "none", "norm_place": "pooled"}, ["norm_place: model.pooling none makes nothing"]),
        ({**SMALL, "norm_place": "pooled"}, ["norm_place: has no effect on model.pooling cls: the norm of the class token is the same"]),
        ({**SMALL, "pooling": "mean", "window": 2, "global_blocks": [1, 0]}, ["global_blocks: all 2 blocks attend to all tokens, so"]),
        ({**SMALL, "depth": 1, "stochastic_depth": 0.1}, ["stochastic_depth_schedule: linear drops nothing at the first block"]),
        (
            {**SMALL, "parallel": True, "token_merging": {"per_block": 2}},
            ["token_merging: merges between attention and MLP, which model.parallel has side by side; use one of the two"],
        ),
        (
            {**SMALL, "rotary": {"kind": "dinov3"}, "token_merging": {"per_block": 2}},
            ["token_merging: leaves tokens that stand at several places, and model.rotary turns them by one; use one"],
        ),
        (
            {**SMALL, "stochastic_depth": 0.1, "halting": {}},
            ["halting: lets every token decide on its depth, and model.stochastic_depth skips blocks at random; use one of the two"],
        ),
        ({**SMALL, "halting": {"prior": {"depth": 3}}}, ["halting: prior.depth: 3 is deeper than the 2 blocks of the model"]),
        ({**SMALL, "token_merging": {"per_block": -1}}, ["token_merging.per_block: "]),
        ({**SMALL, "stochastic_depth_schedule": "constant"}, ["stochastic_depth_schedule: has no effect without stochastic depth"]),
        (
            {"variant": "DINOv2-g/14", "image_size": 224, "mlp": "gelu"},
            ["mlp: gelu contradicts model.variant DINOv2-g/14, which has swiglu; leave it out, or name a plain size"],
        ),
        (
            {"variant": "DINOv3-S+/16", "image_size": 224, "rotary": {"kind": "dinov3", "base": 50.0, "rescale": 2.0}},
            ['rotary: {"kind": "dinov3", "base": 50.0, "normalise": "separate", "shift": 0.0, "jitter": 1.0, "rescale": 2.0} contradicts'],
        ),
        (
            {**SMALL, "stem": {"kind": "resnet", "units": [1, 1, 1]}},
            ["stem: resnet makes the image 16 times smaller, and model.patch_size 8 is not a multiple of that; use for example 16"],
        ),
        (
            {"variant": "R50+B/16", "image_size": 224, "stem": {"kind": "resnet", "units": [2, 2, 2]}},
            ['stem: {"kind": "resnet", "units": [2, 2, 2], "width": 64, "epsilons": "google"} contradicts model.variant R50+B/16,'],
        ),
        ({**SMALL, "stem": {"kind": "convolutions", "widths": [8], "strides": [1, 2]}}, ["stem.strides: 2 strides for the 1 convol"]),
        ({**SMALL, "stem": {"kind": "convs"}}, ["stem.kind: 'convs' is not one of 'patches', 'convolutions', 'resnet'"]),
        (
            {**SMALL, "attention": "cross_covariance", "parallel": True},
            [
                "attention: cross_covariance: nothing passes from patches to the token that model.pooling cls adds; pool by mean",
            ],
        ),
        (
            {**SMALL, "pooling": "mean", "attention": "cross_covariance", "parallel": True, "window": 2, "rotary": {"kind": "eva02"}},
            [
                f"{key}: is for attention between tokens, not for model.attention cross_covariance"
                for key in ("parallel", "window", "rotary")
            ],
        ),
        (
            {**SMALL, "pooling": "mean", "attention": "cross_covariance", "qk_norm": True},
            ["attention: cross_covariance: queries and keys are normalised over the tokens already; leave out model.qk_norm"],
        ),
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
        decode(ViTConfig, values=values, source="run.yaml")
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        assert line.startswith(problem)


def test_a_published_model_fixes_its_settings_and_may_be_named_with_them() -> None:
    model = decode(ViTConfig, values={"variant": "DINOv2-reg-g/14", "image_size": 224, "image_mean": [0.5]}, source="run.yaml")
    assert (model.mlp, model.shape.mlp_width, model.num_registers, model.layer_scale) == ("swiglu", 4096, 4, 1e-5)
    assert (model.image_mean, model.image_std) == ((0.5,), (0.229, 0.224, 0.225))
    assert decode(ViTConfig, values=model.model_dump(mode="json"), source="run.yaml") == model
    assert decode(ViTConfig, values={"variant": "DINOv2-S/14", "image_size": 28, "num_channels": 1}, source="run.yaml").image_mean == (0.5,)


def test_a_published_model_leaves_what_only_training_has_and_its_pooling_where_it_had_none() -> None:
    values = {"variant": "DINOv3-S/16", "image_size": 224, "rotary": {"kind": "dinov3", "rescale": 2.0}}
    model = decode(ViTConfig, values=values, source="run.yaml")
    assert set(model.draw_sources) == {"model_seed"}
    assert decode(ViTConfig, values=model.model_dump(mode="json"), source="run.yaml") == model
    encoder = decode(ViTConfig, values={"variant": "SAM-L/16", "image_size": 1024, "pooling": "map"}, source="run.yaml")
    assert (encoder.pooling, encoder.window, encoder.global_blocks) == ("map", 14, (5, 11, 17, 23))
    assert decode(ViTConfig, values={"variant": "SAM-L/16", "image_size": 1024}, source="run.yaml").pooling == "mean"
    for positions in ("learned", "sincos2d_mae"):  # as MAE is fine-tuned, and as it is pre-trained
        values = {"variant": "MAE-B/16", "image_size": 224, "positions": positions}
        assert decode(ViTConfig, values=values, source="run.yaml").positions == positions


def test_of_a_variants_stem_only_the_epsilons_are_free() -> None:
    stem = {"kind": "resnet", "units": [2, 2, 2, 2], "epsilons": "timm"}
    model = decode(ViTConfig, values={"variant": "R26+S/32", "image_size": 64, "stem": stem}, source="run.yaml")
    assert (model.stem.epsilons, model.stem.units) == ("timm", (2, 2, 2, 2))
    assert ViTConfig(variant="R+Ti/16", image_size=64).shape.patch_size == 32
    assert decode(ViTConfig, values=model.model_dump(mode="json"), source="run.yaml") == model
