"""Vision transformers behind a stem, against timm's hybrids."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers import GroupNormAct, HybridEmbed, StdConv2dSame
from timm.layers.padding import pad_same
from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.oracles import random_classifier
from vitscale.engine.recompute import apply_recompute
from vitscale.models import ViTConfig
from vitscale.nn.init import materialise
from vitscale.nn.resample import Grid, resample_positions
from vitscale.objectives import Supervised
from vitscale.run_config import RecomputeMode

SIZES = {"width": 32, "depth": 1, "num_heads": 2, "mlp_width": 48, "num_channels": 2}
RESNET = {**SIZES, "image_size": 64, "patch_size": 16, "stem": {"kind": "resnet", "units": [2, 1], "width": 32}}
ROOT = {**SIZES, "image_size": 32, "patch_size": 8, "stem": {"kind": "resnet", "width": 32}}
CONVOLUTIONS = {**SIZES, "image_size": 16, "patch_size": 4, "stem": {"kind": "convolutions", "widths": [8, 16]}}


def config(sizes: dict, **stem: object) -> ViTConfig:
    return ViTConfig.model_validate({**sizes, "stem": sizes["stem"] | stem})


class GooglesConv(nn.Conv2d):
    """StdConv of google-research/vision_transformer, vit_jax/models_resnet.py: divided by the deviation plus 1e-5, "SAME" padding."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, **_: object) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = centred / (centred.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-5)
        return F.conv2d(pad_same(x, self.kernel_size, self.stride), weight, stride=self.stride)


EPSILONS = {
    "timm": (partial(StdConv2dSame, eps=1e-8), partial(GroupNormAct, num_groups=32)),
    "google": (GooglesConv, partial(GroupNormAct, num_groups=32, eps=1e-6)),
}


class Hybrid:
    """timm's hybrid of a configuration with our weights."""

    def __init__(self, model: ViTConfig, ours: Supervised) -> None:
        stem, (conv, norm) = model.stem, EPSILONS[model.stem.epsilons]
        if stem.units:
            channels = tuple(4 * stem.width * 2**stage for stage in range(len(stem.units)))
            layers = {"conv_layer": conv, "norm_layer": norm, "stem_type": "same", "preact": False, "in_chans": model.num_channels}
            backbone = ResNetV2(stem.units, channels, num_classes=0, global_pool="", stem_chs=stem.width, **layers)
        else:
            backbone = create_resnetv2_stem(model.num_channels, stem.width, "same", preact=False, conv_layer=conv, norm_layer=norm)
        self.model = VisionTransformer(
            img_size=model.image_size,
            patch_size=model.patch_size // stem.stride,
            in_chans=model.num_channels,
            num_classes=ours.num_classes,
            embed_dim=model.width,
            depth=model.depth,
            num_heads=model.num_heads,
            mlp_ratio=model.mlp_width / model.width,
            embed_layer=partial(HybridEmbed, backbone=backbone),
            dynamic_img_size=True,
        )
        state = {self.name(name, has_stages=bool(stem.units)): value.detach() for name, value in ours.named_parameters()}
        kernel = self.model.patch_embed.proj.weight
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].reshape(kernel.shape)
        self.model.load_state_dict(state)

    @staticmethod
    def name(name: str, *, has_stages: bool) -> str:
        name = name.removeprefix("backbone.").replace("head.fc", "head").replace("patch_embed", "patch_embed.proj")
        if not name.startswith("stem."):
            return name
        name = name.replace("conv_proj", "downsample.conv").replace("norm_proj", "downsample.norm")
        if name.startswith("stem.root."):
            return name.replace("stem.root", "patch_embed.backbone.stem" if has_stages else "patch_embed.backbone")
        _, _, stage, unit, rest = name.split(".", maxsplit=4)
        return f"patch_embed.backbone.stages.{stage}.blocks.{unit}.{rest}"


@pytest.mark.parametrize("epsilons", ["google", "timm"])
@pytest.mark.parametrize("sizes", [RESNET, ROOT])
def test_a_hybrid_equals_timms_in_logits_and_gradients(sizes: dict, epsilons: str) -> None:
    model = config(sizes, epsilons=epsilons)
    ours = random_classifier(model, num_classes=5)
    theirs = Hybrid(model, ours).model
    # With this seed no ReLU's input is within 1e-5 of zero: one that rounding takes across has another gradient here than there.
    image_BCHW = torch.randn(2, 2, model.image_size, model.image_size, generator=torch.Generator().manual_seed(14))
    (our_logits,), their_logits = ours._logits(image_BCHW, draws=None), theirs(image_BCHW)
    assert our_logits.abs().max() > 0.1
    assert (our_logits - their_logits).abs().max() <= 1e-6
    label_B = torch.tensor([0, 4])
    F.cross_entropy(our_logits, label_B).backward()
    F.cross_entropy(their_logits, label_B).backward()
    for name, parameter in ours.named_parameters():
        expected = theirs.get_parameter(Hybrid.name(name, has_stages=bool(model.stem.units))).grad.reshape(parameter.shape)
        assert expected.abs().max() > 0, name
        assert (parameter.grad - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def test_at_another_size_a_hybrid_equals_timms() -> None:
    torch.manual_seed(0)
    model = config(ROOT, epsilons="timm")
    ours = random_classifier(model, num_classes=5)
    image_BCHW = torch.randn(1, 2, 24, 48)
    assert (ours._logits(image_BCHW, draws=None)[0] - Hybrid(model, ours).model(image_BCHW)).abs().max() <= 1e-6


def test_at_another_size_the_table_is_resampled_to_the_stems_grid_as_google_does() -> None:
    model = ViTConfig.model_validate({**ROOT, "resampling": "google"})
    own, larger = random_classifier(model, num_classes=5), random_classifier(model.model_copy(update={"image_size": 64}), num_classes=5)
    table = resample_positions(own.backbone.pos_embed, source=Grid(4, 4), target=Grid(8, 8), num_prefix=1, mode="google")
    larger.load_state_dict({**own.state_dict(), "backbone.pos_embed": table})
    image_BCHW = torch.randn(1, 2, 64, 64)
    assert torch.equal(own._logits(image_BCHW, draws=None)[0], larger._logits(image_BCHW, draws=None)[0])


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("sizes", [RESNET, CONVOLUTIONS])
def test_a_recomputed_stem_has_the_same_gradients(sizes: dict, mode: RecomputeMode) -> None:
    grads = []
    for chosen in ("none", mode):
        model = ViTConfig.model_validate(sizes)
        vit = materialise(model.build(), seed=0)
        apply_recompute(vit, mode=chosen, every=1)
        image_BCHW = torch.ones(1, 2, model.image_size, model.image_size).cumsum(3)
        vit(image_BCHW).pooled_BD.square().sum().backward()
        grads.append([parameter.grad for parameter in vit.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_patches_are_cut_from_the_stems_features() -> None:
    vit = materialise(ViTConfig.model_validate({**CONVOLUTIONS, "patch_size": 8}).build(), seed=0)
    assert vit.patch_embed.weight.shape == (32, 16 * 2 * 2)
    assert vit(torch.randn(1, 2, 16, 24)).tokens_BND.shape == (1, 7, 32)


@pytest.mark.parametrize("sizes", [ROOT, CONVOLUTIONS])
def test_a_few_images_are_learned(sizes: dict) -> None:
    model = ViTConfig.model_validate(sizes)
    ours = random_classifier(model, num_classes=4)
    image_BCHW = torch.randn(8, 2, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    label_B = torch.arange(8) % 4
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(ours._logits(image_BCHW, draws=None)[0], label_B)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
