"""Vision transformers whose positions are turns and biases, whole; test_parity.py compares them with the projects that have them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests import family_settings
from tests.oracles import random_classifier
from vitscale.config import ConfigError, decode
from vitscale.models import ViTConfig
from vitscale.models.flops import forward_flops
from vitscale.nn.counter_hash import SEED_KEY
from vitscale.nn.init import materialise
from vitscale.objectives import Supervised

SMALL = {"image_size": 32, "patch_size": 8, "num_channels": 2, "width": 32, "depth": 2, "mlp_width": 72, "num_heads": 2}
EVA_02 = {**SMALL, **family_settings.EVA_02}
BEIT = {**SMALL, **family_settings.BEIT}
BEIT_SHARED = {**SMALL, **family_settings.BEIT_SHARED}
DINO_V3 = {**SMALL, **family_settings.DINO_V3}
MIXED = {**SMALL, **family_settings.MIXED}
SAM = {**SMALL, **family_settings.SAM}
LOG_SPACED = {**SMALL, "positions": "none", "position_bias": {"kind": "log_spaced", "hidden_width": 16}}
FACTORISED = {**SMALL, "positions": "factorised"}

ALL = {
    "eva02": EVA_02,
    "beit": BEIT,
    "beit_shared": BEIT_SHARED,
    "dinov3": DINO_V3,
    "mixed": MIXED,
    "sam": SAM,
    "log_spaced": LOG_SPACED,
    "factorised": FACTORISED,
    "none": {**SMALL, "positions": "none"},
}


def config(values: dict) -> ViTConfig:
    return decode(ViTConfig, values=values, source="test")


def images(rows: int, columns: int, *, batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, 8 * rows, 8 * columns, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["log_spaced", "factorised"])  # which no other project has in a plain model
def test_learns(name: str) -> None:
    ours = materialise(config(ALL[name]).build(), seed=0)
    assert isinstance(ours, nn.Module)
    head = nn.Linear(32, 4)
    optimizer = torch.optim.AdamW([*ours.parameters(), *head.parameters()], lr=3e-3)
    image_BCHW, label_B = images(4, 4, batch=8), torch.arange(8) % 4
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(head(ours(image_BCHW).pooled_BD), label_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


@pytest.mark.parametrize("name", ALL)
def test_has_no_buffers_works_in_bf16_and_is_trained_after_an_evaluation(name: str) -> None:
    with torch.device("meta"):
        model = config(ALL[name]).build()
    assert list(model.buffers()) == []
    materialise(model, seed=0).to(torch.bfloat16)
    image_BCHW = images(4, 4).bfloat16()
    with torch.inference_mode():
        evaluated_BD = model(image_BCHW).pooled_BD
    trained_BD = model(image_BCHW).pooled_BD
    assert trained_BD.dtype == torch.bfloat16
    # Where nothing needs a gradient, scores with a bias go through a fused kernel, which rounds to bf16 less often.
    torch.testing.assert_close(evaluated_BD, trained_BD, rtol=0, atol=0.05)
    trained_BD.float().pow(2).sum().backward()


@pytest.mark.parametrize("name", ALL)
def test_flops_equal_torchs_count(name: str) -> None:
    model_config = config(ALL[name])
    with torch.device("meta"):
        model = model_config.build()
        image_BCHW = torch.zeros(1, 2, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(image_BCHW)
    networks = 0
    if name == "log_spaced":  # they run once for a batch, not for each image
        networks = model_config.shape.depth * 2 * 49 * (2 * 16 + 16 * 2)
    assert counter.get_total_flops() - networks == forward_flops(model_config.shape)


def test_every_position_tells_a_patch_from_its_neighbour() -> None:
    image_BCHW = images(4, 4, batch=1)
    moved_BCHW = image_BCHW.roll(8, dims=3)
    for name, values in ALL.items():
        model = random_classifier(config(values), num_classes=5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
        moved = (logits(model, image_BCHW) - logits(model, moved_BCHW)).abs().max()
        assert (moved > 1e-4) == (name != "none"), (name, moved)


def test_coordinates_are_drawn_for_each_sample_alone() -> None:
    values = {**DINO_V3, "rotary": {"kind": "dinov3", "shift": 0.2, "jitter": 1.2, "rescale": 2.0}}
    model = random_classifier(config(values), num_classes=5).backbone
    assert model.draw_keys == {SEED_KEY}
    image_BCHW = images(4, 4, batch=1).expand(3, -1, -1, -1)
    with torch.no_grad():
        plain_BD = model(image_BCHW).pooled_BD
        drawn_BD = model(image_BCHW, draws={SEED_KEY: torch.tensor([5, 6, 5])}).pooled_BD
        alone_BD = model(image_BCHW[:1], draws={SEED_KEY: torch.tensor([6])}).pooled_BD
    torch.testing.assert_close(drawn_BD[0], drawn_BD[2], rtol=0, atol=3e-6)  # a row's place in a product can change its rounding
    assert (drawn_BD[0] - drawn_BD[1]).abs().max() > 1e-4
    assert (drawn_BD[0] - plain_BD[0]).abs().max() > 1e-4
    torch.testing.assert_close(alone_BD[0], drawn_BD[1], rtol=0, atol=3e-6)
    assert config(DINO_V3).draw_sources == {}


@pytest.mark.parametrize("values", [DINO_V3, MIXED])
def test_patches_that_are_left_keep_their_turn(values: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_classifier(config({**values, "patch_dropout": 0.5}), num_classes=5).backbone
    image_BCHW, seed_B = images(4, 4), torch.tensor([3, 4])
    with torch.no_grad():
        left_BND = model(image_BCHW, draws={SEED_KEY: seed_B}).tokens_BND
        # All patches "kept", in another order: tokens come in that order, each as it would be in its place.
        order_BP = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
        monkeypatch.setattr("vitscale.models.vit.kept_patches", lambda *_, **__: order_BP)
        shuffled_BND = model(image_BCHW, draws={SEED_KEY: seed_B}).tokens_BND
        plain_BND = model(image_BCHW).tokens_BND
    num_prefix = model.num_prefix
    assert left_BND.shape[1] == num_prefix + 8
    expected_BND = torch.stack([tokens[num_prefix:][order] for tokens, order in zip(plain_BND, order_BP, strict=True)])
    torch.testing.assert_close(shuffled_BND[:, num_prefix:], expected_BND, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({**SMALL, "width": 12, "rotary": {"kind": "dinov3"}}, "rotary: turns pairs of channels for rows and columns: heads of 6 channels"),
        ({**SAM, "position_bias": None, "rotary": {"kind": "mixed"}}, "rotary: turns tokens by their place in the image"),
        ({**SAM, "position_bias": {"kind": "relative", "shared": True}}, "position_bias: shared: one table cannot serve windows"),
        ({**BEIT, "patch_dropout": 0.5}, "position_bias: is for a whole grid of patches"),
        ({**BEIT, "resampling": "dinov2"}, "position_bias: model.resampling dinov2 has no rule for a table of relative positions"),
        ({**SMALL, "rotary": {"kind": "golden"}}, "rotary.kind: 'golden' is not one of 'dinov3', 'eva02', 'mixed'"),
        ({**SMALL, "rotary": {"kind": "eva02", "shift": 0.1}}, "rotary.shift: unknown key; known here: kind, base, pretrained_grid"),
    ],
)
def test_what_cannot_be_combined_is_told(values: dict, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(values)
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert len(lines) == 1
    assert lines[0].startswith(problem)


def logits(ours: Supervised, image_BCHW: Tensor) -> Tensor:
    return ours.head(ours.backbone(image_BCHW).pooled_BD)
