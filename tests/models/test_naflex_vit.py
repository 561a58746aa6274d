"""NaFlex: an image in a mixed batch as by itself; parity with timm's NaFlexVit and transformers' SigLIP 2 on mixed grids."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from torch import Tensor, nn
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionConfig, Siglip2VisionModel

from tests.oracles import random_classifier
from vitscale.data.images.patch_sequences import cut_patches
from vitscale.models import ViTConfig
from vitscale.nn.counter_hash import SEED_KEY
from vitscale.nn.init import materialise
from vitscale.nn.input_form import PATCH_GRID_KEY
from vitscale.objectives import Supervised

SIDE, LENGTH = 4, 36
GRIDS = [(2, 5), (6, 6), (4, 3), (2, 5), (1, 12)]
SMALL = {"image_size": 24, "patch_size": SIDE, "num_channels": 2, "width": 32, "depth": 2, "num_heads": 4, "pooling": "mean"}
NAFLEX = {**SMALL, "resampling": "naflex", "naflex": {"sequence_lengths": [24, LENGTH]}}


def images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (rows * SIDE, columns * SIDE, 2), dtype=np.uint8) for rows, columns in GRIDS]


def sequences(some: list[np.ndarray], *, length: int = LENGTH) -> Tensor:
    return torch.from_numpy(np.stack([cut_patches(image, patch_size=SIDE, length=length) for image in some]))


def batch() -> dict[str, Tensor]:
    return {"image": sequences(images()), PATCH_GRID_KEY: torch.tensor(GRIDS), "label": torch.tensor([0, 6, 3, 1, 2])}


VARIANTS = [
    {},
    {"norm_place": "pooled", "class_token": True, "num_registers": 2},
    {"pooling": "cls"},  # a row for the class token in the table of each grid
    {"pooling": "cls", "distillation_token": True, "prefix_positions": False},
    {"pooling": "map", "resampling": "siglip2"},
    {"positions": "sincos2d_mae"},
    {"positions": "factorised"},
    {"positions": "none", "parallel": True, "qk_norm": True, "rotary": {"kind": "dinov3"}, "num_registers": 1},
    {"positions": "none", "rotary": {"kind": "eva02"}, "pooling": "cls"},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_logits_of_an_image_are_the_same_in_a_mixed_batch_by_itself_and_not_as_a_sequence(changes: dict) -> None:
    ours = random_classifier(ViTConfig.model_validate({**NAFLEX, **changes}), num_classes=7)
    mixed = ours.predict(batch())
    assert (mixed - mixed[0]).abs()[1:].amax() > 0.05
    for logits, image, grid in zip(mixed, images(), GRIDS, strict=True):
        fitting = {"image": sequences([image], length=grid[0] * grid[1]), PATCH_GRID_KEY: torch.tensor([grid])}
        assert (ours.predict(fitting)[0] - logits).abs().max() <= 1e-6
        pixels = ours.backbone.normalise(torch.from_numpy(image.transpose(2, 0, 1).copy()).unsqueeze(0))
        plain = torch.stack(ours._logits(pixels, draws=None)).mean(0)
        assert (plain[0] - logits).abs().max() <= 1e-6


def test_what_fills_a_sequence_up_is_not_seen() -> None:
    ours = random_classifier(ViTConfig.model_validate(NAFLEX), num_classes=7)
    filled = batch()
    for sequence, (rows, columns) in zip(filled["image"], GRIDS, strict=True):
        sequence[:, rows * columns * SIDE :] = 255
    assert torch.equal(ours.predict(filled), ours.predict(batch()))


def timm_logits(ours: Supervised, patches: Tensor, valid: Tensor, *, changes: Mapping[str, object]) -> Tensor:
    """timm's, its parameters functions of ours."""
    pooling = {"mean": "avg", "cls": "token", "map": "map"}[str(changes.get("pooling", "mean"))]
    factorised = changes.get("positions") == "factorised"
    settings = {
        "patch_size": SIDE,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "class_token": pooling == "token",
        "pos_embed": "factorized" if factorised else "learned",
        "pos_embed_grid_size": (6, 6),
        "reg_tokens": int(changes.get("num_registers", 0)),
        "global_pool": pooling,
    }
    oracle = NaFlexVit(NaFlexVitCfg(**settings), in_chans=2, num_classes=7)
    state = {name.removeprefix("backbone."): value for name, value in ours.named_parameters()}
    theirs = {
        "embeds.proj.weight": state.pop("patch_embed.weight").reshape(32, 2, SIDE, SIDE).permute(0, 2, 3, 1).flatten(1),
        "embeds.proj.bias": state.pop("patch_embed.bias"),
        **{f"embeds.{name}": state.pop(name) for name in ("cls_token", "reg_token") if name in state},
    }
    if factorised:
        theirs |= {f"embeds.pos_embed_{axis}": state.pop(f"factorised_positions.{ours_axis}").unsqueeze(0) for axis, ours_axis in AXES}
    else:
        theirs["embeds.pos_embed"] = state.pop("pos_embed").unflatten(1, (6, 6))
    norm = "norm." if isinstance(oracle.fc_norm, nn.Identity) else "fc_norm."
    for name, value in state.items():
        theirs[norm + name.removeprefix("norm.") if name.startswith("norm.") else name.replace("head.fc.", "head.")] = value
    grid_of = [[(place // columns, place % columns) for place in range(rows * columns)] for rows, columns in GRIDS]
    coordinates = torch.tensor([[*places, *[(0, 0)] * (LENGTH - len(places))] for places in grid_of])
    assert set(theirs) == {name for name, _ in oracle.named_parameters()}
    inputs = {"patches": patches, "patch_coord": coordinates, "patch_valid": valid}
    return torch.func.functional_call(oracle, theirs, (inputs,))


AXES = (("y", "rows"), ("x", "columns"))


def siglip_logits(ours: Supervised, patches: Tensor, valid: Tensor, *, changes: Mapping[str, object]) -> Tensor:  # noqa: ARG001
    """transformers' SigLIP 2, its parameters functions of ours, and our head."""
    oracle = Siglip2VisionModel(
        Siglip2VisionConfig(
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_channels=2,
            patch_size=SIDE,
            num_patches=36,
        )
    )
    state = {name.removeprefix("backbone."): value for name, value in ours.named_parameters()}
    head = {leaf: state.pop(f"head.fc.{leaf}") for leaf in ("weight", "bias")}
    theirs = {
        "embeddings.patch_embedding.weight": state.pop("patch_embed.weight").reshape(32, 2, SIDE, SIDE).permute(0, 2, 3, 1).flatten(1),
        "embeddings.patch_embedding.bias": state.pop("patch_embed.bias"),
        "embeddings.position_embedding.weight": state.pop("pos_embed")[0],
        "head.probe": state.pop("attn_pool.latent"),
        **{
            f"head.attention.in_proj_{leaf}": torch.cat([state.pop(f"attn_pool.{part}.{leaf}") for part in ("q", "kv")])
            for leaf in ("weight", "bias")
        },
    }
    for name, value in state.items():
        if ".qkv." in name:
            _, index, *_, leaf = name.split(".")
            parts = zip("qkv", value.chunk(3), strict=True)
            theirs |= {f"encoder.layers.{index}.self_attn.{letter}_proj.{leaf}": part for letter, part in parts}
            continue
        for ours_name, their_name in SIGLIP_NAMES.items():
            name = name.replace(ours_name, their_name)
        theirs[name.replace("norm.", "post_layernorm.") if name.startswith("norm.") else name] = value
    assert set(theirs) == {name for name, _ in oracle.named_parameters()}
    inputs = {"pixel_values": patches, "pixel_attention_mask": valid.long(), "spatial_shapes": torch.tensor(GRIDS)}
    pooled = torch.func.functional_call(oracle, theirs, (), inputs).pooler_output
    return F.linear(pooled, head["weight"], head["bias"])


SIGLIP_NAMES = {
    "attn_pool.proj": "head.attention.out_proj",
    "attn_pool.norm": "head.layernorm",
    "attn_pool.": "head.",
    "blocks.": "encoder.layers.",
    ".norm1": ".layer_norm1",
    ".norm2": ".layer_norm2",
    ".attn.proj": ".self_attn.out_proj",
}

Oracle = Callable[..., Tensor]


@pytest.mark.parametrize(
    ("oracle", "changes"),
    [
        (timm_logits, {"norm_place": "pooled"}),
        (timm_logits, {"norm_place": "pooled", "num_registers": 2, "positions": "factorised"}),
        (timm_logits, {"pooling": "cls", "prefix_positions": False, "num_registers": 1}),
        (timm_logits, {"pooling": "map"}),
        (siglip_logits, {"pooling": "map", "gelu": "tanh", "resampling": "siglip2"}),
    ],
)
def test_equals_the_oracle_in_logits_and_gradients(oracle: Oracle, changes: dict) -> None:
    ours = random_classifier(ViTConfig.model_validate({**NAFLEX, **changes}), num_classes=7)
    given = batch()
    pixels = ours.backbone.normalise(given["image"])
    patches = pixels.unflatten(2, (LENGTH, SIDE)).permute(0, 2, 3, 4, 1).flatten(2)
    valid = torch.arange(LENGTH) < given[PATCH_GRID_KEY].prod(dim=1, keepdim=True)

    (our_logits,) = ours._logits(pixels, draws=given)
    our_gradients = torch.autograd.grad(F.cross_entropy(our_logits, given["label"]), list(ours.parameters()))
    their_logits = oracle(ours, patches, valid, changes=changes)
    their_gradients = torch.autograd.grad(F.cross_entropy(their_logits, given["label"]), list(ours.parameters()))

    assert our_logits.abs().max() > 0.1
    assert (our_logits - their_logits).abs().max() <= 1e-6
    for (name, _), found, expected in zip(ours.named_parameters(), our_gradients, their_gradients, strict=True):
        assert expected.abs().max() > 0, name
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def test_stochastic_depth_and_dropout_are_those_of_the_image_by_itself() -> None:
    config = ViTConfig.model_validate({**NAFLEX, "stochastic_depth": 0.5, "stochastic_depth_schedule": "constant", "dropout": 0.1})
    ours = random_classifier(config, num_classes=7)
    seeds = torch.arange(5) * 7919
    (mixed,) = ours._logits(ours.backbone.normalise(batch()["image"]), draws={**batch(), SEED_KEY: seeds})
    assert (mixed - ours.predict(batch())).abs().max() > 0.05
    for index in range(5):
        one = {key: value[index : index + 1] for key, value in {**batch(), SEED_KEY: seeds}.items()}
        (alone,) = ours._logits(ours.backbone.normalise(one["image"]), draws=one)
        assert (alone[0] - mixed[index]).abs().max() <= 1e-6


def test_the_parameters_are_those_of_the_plain_model() -> None:
    plain, naflex = (materialise(ViTConfig.model_validate(values).build(), seed=0).state_dict() for values in (SMALL, NAFLEX))
    assert plain.keys() == naflex.keys()
    assert all(torch.equal(value, naflex[name]) for name, value in plain.items())
