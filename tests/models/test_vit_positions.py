"""Vision transformers whose positions are turns and biases, whole, against the projects that have them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from tests.oracles import random_classifier
from vitscale.config import ConfigError, decode
from vitscale.models import ViTConfig
from vitscale.models.flops import forward_flops
from vitscale.nn.counter_hash import SEED_KEY
from vitscale.nn.init import materialise
from vitscale.objectives import Supervised

SMALL = {"image_size": 32, "patch_size": 8, "num_channels": 2, "width": 32, "depth": 2, "mlp_width": 72, "num_heads": 2}
EVA_02 = {
    **SMALL,
    "mlp": "swiglu",
    "mlp_norm": True,
    "qkv_bias": "no_key",
    "class_token": True,
    "pooling": "mean",
    "norm_place": "pooled",
    "rotary": {"kind": "eva02", "pretrained_grid": 3},
}
BEIT = {
    **SMALL,
    "positions": "none",
    "qkv_bias": "no_key",
    "layer_scale": 0.1,
    "class_token": True,
    "pooling": "mean",
    "norm_place": "pooled",
    "position_bias": {"kind": "relative"},
}
BEIT_SHARED = {**BEIT, "position_bias": {"kind": "relative", "shared": True}}
DINO_V3 = {
    **SMALL,
    "positions": "none",
    "qkv_bias": "no_key",
    "layer_scale": 1.0,
    "num_registers": 4,
    "layer_norm_eps": 1e-5,
    "rotary": {"kind": "dinov3"},
}
MIXED = {**SMALL, "positions": "none", "rotary": {"kind": "mixed"}}
SAM = {**SMALL, "pooling": "mean", "window": 3, "global_blocks": [1], "position_bias": {"kind": "decomposed"}}
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


class Oracle:
    """Another project's model with our weights. `names` says what our parameters are called there: several names share the rows of
    ours, and a name that ends with `:i` is the i-th slice, along its second dimension, of a parameter that all blocks share."""

    def __init__(self, model: nn.Module, ours: Supervised, *, names: dict[str, str]) -> None:
        self.model = model
        self.names = names
        self.head = ours.head
        with torch.no_grad():
            for name, value in ours.named_parameters():
                targets = self._targets(name)
                for target, part in zip(targets, value.chunk(len(targets)), strict=True):
                    place = self._place(target, of="data")
                    place.copy_(part.reshape(place.shape))

    def logits(self, image_BCHW: Tensor) -> Tensor:
        result = self.model(image_BCHW)
        return result if isinstance(result, Tensor) else self.head(result.pooler_output)

    def gradient(self, name: str) -> Tensor:
        return torch.cat([self._place(target, of="grad").flatten() for target in self._targets(name)])

    def _targets(self, name: str) -> list[str]:
        for ours, theirs in self.names.items():
            if ours in name:
                return [name.replace(ours, new).removeprefix("backbone.") for new in theirs.split()]
        return [name.removeprefix("backbone.")]

    def _place(self, target: str, *, of: str) -> Tensor:
        name, _, index = target.partition(":")
        if name.startswith("head.") and not hasattr(self.model, "head"):
            return getattr(self.head.get_parameter(name.removeprefix("head.")), of)
        whole = getattr(self.model.get_parameter(name), of)
        return whole[:, int(index)] if index else whole


TIMM = {"backbone.patch_embed.": "patch_embed.proj.", "head.fc.": "head."}
QKV = {"attn.qkv.weight": "attn.q_proj.weight attn.k_proj.weight attn.v_proj.weight"}
SIZES = {"patch_size": 8, "in_chans": 2, "num_classes": 5, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 72 / 32}
NORM = {"norm_layer": partial(nn.LayerNorm, eps=1e-6)}


def eva_02(ours: Supervised) -> Oracle:
    how: dict[str, Any] = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "use_rot_pos_emb": True, "ref_feat_shape": (3, 3)}
    model = Eva(img_size=32, **SIZES, **NORM, **how, dynamic_img_size=True, global_pool="avg")
    biases = {"attn.qkv.q_bias": "attn.q_proj.bias", "attn.qkv.v_bias": "attn.v_proj.bias"}
    return Oracle(model, ours, names={**TIMM, **QKV, **biases, "mlp.fc1": "mlp.fc1_g mlp.fc1_x", "backbone.norm.": "fc_norm."})


def beit(ours: Supervised) -> Oracle:
    is_shared = ours.backbone.shared_position_bias is not None
    how: dict[str, Any] = {"init_values": 0.1, "use_abs_pos_emb": False, "use_rel_pos_bias": not is_shared}
    model = Beit(img_size=32, **SIZES, **NORM, **how, use_shared_rel_pos_bias=is_shared)
    names = {
        "backbone.norm.": "fc_norm.",
        "attn.qkv.q_bias": "attn.q_bias",
        "attn.qkv.v_bias": "attn.v_bias",
        "ls1.gamma": "gamma_1",
        "ls2.gamma": "gamma_2",
        "backbone.shared_position_bias.table": "rel_pos_bias.relative_position_bias_table",
        "position_bias.table": "relative_position_bias_table",
    }
    return Oracle(model, ours, names={**TIMM, **names})


def mixed(ours: Supervised) -> Oracle:
    how: dict[str, Any] = {"attn_type": "rope", "use_abs_pos_emb": False, "use_rot_pos_emb": True, "rope_type": "mixed"}
    model = Eva(
        img_size=32, **SIZES, **NORM, **how, rope_grid_indexing="xy", rope_temperature=10.0, dynamic_img_size=True, global_pool="token"
    )
    frequencies = {f"backbone.blocks.{index}.attn.rope.frequencies": f"rope.freqs:{index}" for index in range(2)}
    return Oracle(model, ours, names={**TIMM, **frequencies})


def dino_v3(ours: Supervised) -> Oracle:
    model = DINOv3ViTModel(
        DINOv3ViTConfig(
            patch_size=8,
            hidden_size=32,
            intermediate_size=72,
            num_hidden_layers=2,
            num_attention_heads=2,
            layer_norm_eps=1e-5,
            image_size=32,
            num_channels=2,
            num_register_tokens=4,
        )
    ).eval()
    names = {
        "backbone.cls_token": "embeddings.cls_token",
        "backbone.reg_token": "embeddings.register_tokens",
        "backbone.patch_embed": "embeddings.patch_embeddings",
    }
    for index in range(2):
        block, layer = f"backbone.blocks.{index}", f"model.layer.{index}"
        names |= {
            f"{block}.attn.qkv.weight": " ".join(f"{layer}.attention.{letter}_proj.weight" for letter in "qkv"),
            f"{block}.attn.qkv.q_bias": f"{layer}.attention.q_proj.bias",
            f"{block}.attn.qkv.v_bias": f"{layer}.attention.v_proj.bias",
            f"{block}.attn.proj": f"{layer}.attention.o_proj",
            f"{block}.ls1.gamma": f"{layer}.layer_scale1.lambda1",
            f"{block}.ls2.gamma": f"{layer}.layer_scale2.lambda1",
            f"{block}.mlp.fc1": f"{layer}.mlp.up_proj",
            f"{block}.mlp.fc2": f"{layer}.mlp.down_proj",
            f"{block}.": f"{layer}.",
        }
    return Oracle(model, ours, names=names)


def sam(ours: Supervised) -> Oracle:
    how: dict[str, Any] = {"use_rel_pos": True, "window_size": 3, "global_attn_indexes": (1,), "neck_chans": 0}
    model = VisionTransformerSAM(img_size=32, **SIZES, **NORM, **how)
    names = {"backbone.norm.": "neck.", "position_bias.rows": "rel_pos_h", "position_bias.columns": "rel_pos_w"}
    return Oracle(model, ours, names={"backbone.patch_embed.": "patch_embed.proj.", **names})


CASES = [
    pytest.param(EVA_02, eva_02, id="EVA-02"),
    pytest.param(BEIT, beit, id="BEiT"),
    pytest.param(BEIT_SHARED, beit, id="BEiT-shared"),
    pytest.param(DINO_V3, dino_v3, id="DINOv3"),
    pytest.param(MIXED, mixed, id="RoPE-Mixed"),
    pytest.param(SAM, sam, id="SAM"),
]


@pytest.mark.parametrize(("values", "oracle"), CASES)
def test_equals_the_project_in_logits_and_gradients(values: dict, oracle: Callable[[Supervised], Oracle]) -> None:
    ours = random_classifier(config(values), num_classes=5)
    theirs = oracle(ours)
    image_BCHW, label_B = images(4, 4), torch.tensor([1, 4])
    our_logits, their_logits = logits(ours, image_BCHW), theirs.logits(image_BCHW)
    assert our_logits.abs().max() > 0.1  # otherwise the comparison would show nothing
    assert (our_logits - their_logits).abs().max() <= 1e-6

    F.cross_entropy(our_logits, label_B).backward()
    gradients = {name: parameter.grad.flatten() for name, parameter in ours.named_parameters() if not name.startswith("head.")}
    ours.zero_grad()
    F.cross_entropy(their_logits, label_B).backward()
    for name, gradient in gradients.items():
        expected = theirs.gradient(name)
        assert expected.abs().max() > 0, name
        assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize(("values", "oracle"), CASES)
def test_at_another_size_equals_the_projects_own_resampling(values: dict, oracle: Callable[[Supervised], Oracle]) -> None:
    ours = random_classifier(config(values), num_classes=5)
    theirs, image_BCHW = oracle(ours), images(3, 6)
    if isinstance(theirs.model, Beit):
        theirs.model.set_input_size(img_size=(24, 48))
    our_logits = logits(ours, image_BCHW)
    assert (our_logits - theirs.logits(image_BCHW)).abs().max() <= 1e-6
    our_logits.sum().backward()
    assert all((parameter.grad != 0).any() for parameter in ours.parameters())


@pytest.mark.parametrize("name", ALL)
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
    assert torch.equal(drawn_BD[0], drawn_BD[2])
    assert (drawn_BD[0] - drawn_BD[1]).abs().max() > 1e-4
    assert (drawn_BD[0] - plain_BD[0]).abs().max() > 1e-4
    torch.testing.assert_close(alone_BD[0], drawn_BD[1], rtol=0, atol=1e-6)
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
