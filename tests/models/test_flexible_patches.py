"""FlexiViT: parity with timm's model of each patch size, its kernel resampled by timm and its positions by big_vision's formula."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.oracles import random_classifier, timm_model
from vitscale.config import ConfigError, decode
from vitscale.models import ViTConfig
from vitscale.models.flops import forward_flops
from vitscale.nn.input_form import PATCH_SIZE_KEY, InputForm
from vitscale.objectives import Supervised

SMALL = {"image_size": 24, "patch_size": 8, "num_channels": 2, "width": 32, "depth": 2, "num_heads": 4, "pooling": "mean"}
FLEXIBLE = {**SMALL, "flexible_patches": [4, 6, 8, 12], "resampling": "flexivit"}
PAPER = {**FLEXIBLE, "image_size": 20, "flexible_patches": [4, 5, 10]}  # as 240 pixels and a kernel of 32: neither divides the other


def image(size: int) -> Tensor:
    return torch.randn(3, 2, size, size, generator=torch.Generator().manual_seed(1))


def marked(patch_size: int, *, num_samples: int = 3) -> Mapping[str, Tensor]:
    return {PATCH_SIZE_KEY: torch.empty(num_samples, patch_size, 0, dtype=torch.uint8)}


def theirs(ours: Supervised, config: ViTConfig, *, patch_size: int) -> dict[str, Tensor]:
    """timm's parameters for a patch size as functions of ours."""
    state = {name.removeprefix("backbone."): value for name, value in ours.named_parameters()}
    own, side = config.shape.patch_size, config.shape.grid
    kernel = state.pop("patch_embed.weight").reshape(-1, 2, own, own)
    table = state.pop("pos_embed").transpose(1, 2).unflatten(2, (side, side))
    grid = config.image_size // patch_size
    resized = F.interpolate(table, size=(grid, grid), mode="bilinear", antialias=True)  # jax.image.resize, method linear
    renamed = {
        "patch_embed.proj.weight": resample_patch_embed(kernel, [patch_size, patch_size], interpolation="bilinear", antialias=False),
        "patch_embed.proj.bias": state.pop("patch_embed.bias"),
        "pos_embed": resized.flatten(2).transpose(1, 2),
    }
    return {name.replace("head.fc.", "head."): value for name, value in state.items()} | renamed


@pytest.mark.parametrize(("values", "patch_size"), [(FLEXIBLE, 4), (FLEXIBLE, 8), (FLEXIBLE, 12), (PAPER, 5), (PAPER, 10)])
def test_every_patch_size_equals_the_oracle_in_logits_and_gradients(values: dict, patch_size: int) -> None:
    config = ViTConfig.model_validate(values)
    ours = random_classifier(config, num_classes=7)
    oracle = timm_model(ViTConfig.model_validate({**SMALL, "image_size": config.image_size, "patch_size": patch_size}), num_classes=7)
    image_BCHW, label_B = image(config.image_size), torch.tensor([0, 6, 3])

    (our_logits,) = ours._logits(image_BCHW, draws=marked(patch_size))
    our_gradients = torch.autograd.grad(F.cross_entropy(our_logits, label_B), list(ours.parameters()))
    their_logits = torch.func.functional_call(oracle, theirs(ours, config, patch_size=patch_size), (image_BCHW,))
    their_gradients = torch.autograd.grad(F.cross_entropy(their_logits, label_B), list(ours.parameters()))

    assert our_logits.abs().max() > 0.1
    assert (our_logits - their_logits).abs().max() <= 1e-6
    for (name, _), found, expected in zip(ours.named_parameters(), our_gradients, their_gradients, strict=True):
        assert expected.abs().max() > 0, name
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize(("values", "taken", "other"), [(FLEXIBLE, 8, 4), (PAPER, 4, 5)])
def test_without_a_mark_the_kernels_own_patches_are_taken_or_the_smallest(values: dict, taken: int, other: int) -> None:
    backbone = random_classifier(ViTConfig.model_validate(values), num_classes=7).backbone
    pixels = image(backbone.image_size)
    assert torch.equal(backbone(pixels).pooled_BD, backbone(pixels, draws=marked(taken)).pooled_BD)
    assert (backbone(pixels).pooled_BD - backbone(pixels, draws=marked(other)).pooled_BD).abs().max() > 1e-3


def test_images_without_a_mark_are_predicted_by_the_kernels_own_patches() -> None:
    ours = random_classifier(ViTConfig.model_validate(FLEXIBLE), num_classes=7)
    pixels = torch.randint(0, 256, (3, 2, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours.predict({"image": pixels}), ours.predict({"image": pixels, **marked(8)}))
    assert not torch.equal(ours.predict({"image": pixels}), ours.predict({"image": pixels, **marked(4)}))


def test_evaluations_take_the_smallest_patches() -> None:
    config = ViTConfig.model_validate(FLEXIBLE)
    assert config.eval_form == InputForm(patch_size=4)
    assert config.input_forms == tuple(InputForm(patch_size=size) for size in (4, 6, 8, 12))


def test_evaluations_may_ask_for_patches_that_tile_the_image_and_hold_whole_positions_of_the_stem() -> None:
    plain = ViTConfig.model_validate(FLEXIBLE)
    assert plain.patch_size_problem(3) is None
    assert plain.patch_size_problem(5) == "5 does not divide model.image_size 24"
    stem = {"kind": "convolutions", "widths": [8], "strides": [2]}
    behind_a_stem = ViTConfig.model_validate({**FLEXIBLE, "stem": stem})
    assert behind_a_stem.patch_size_problem(2) is None
    assert behind_a_stem.patch_size_problem(3) == "3 is not a multiple of 2, the stride of model.stem convolutions"


def test_a_model_of_one_patch_size_has_no_keys_of_forms() -> None:
    plain = random_classifier(ViTConfig.model_validate(SMALL), num_classes=7)
    assert plain.batch_keys == {"image", "label"}
    assert random_classifier(ViTConfig.model_validate(FLEXIBLE), num_classes=7).batch_keys == {"image", "label", PATCH_SIZE_KEY}


@pytest.mark.parametrize(
    "changes",
    [{}, {"window": 4, "position_bias": {"kind": "decomposed"}}, {"stem": {"kind": "convolutions", "widths": [8], "strides": [2]}}],
)
def test_flops_are_those_of_the_smallest_patches_and_the_resampled_kernel_once_per_batch(changes: dict) -> None:
    config = ViTConfig.model_validate({**FLEXIBLE, **changes})
    shape = config.shape
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        config.build()(torch.empty(5, 2, 24, 24), draws=marked(4, num_samples=5))
    kernel = 2 * 32 * shape.kernel_channels * shape.kernel_side**2 * (4 // config.stem.stride) ** 2
    assert counter.get_total_flops() == 5 * forward_flops(shape) + kernel
    assert (shape.num_tokens, shape.num_positions) == (36, 9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"flexible_patches": [8]}, "two or more"),
        ({"flexible_patches": [8, 8]}, "each once"),
        ({"flexible_patches": [4, 5]}, "such as 5"),
        ({"patch_size": 32}, "smaller than model.patch_size 32"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        decode(ViTConfig, values={**FLEXIBLE, **changes}, source="test")
