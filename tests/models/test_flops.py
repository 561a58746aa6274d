import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitscale.models import ViTConfig
from vitscale.models.flops import forward_flops, step_flops
from vitscale.objectives import SupervisedConfig

# Published counts in millions without head (big_vision) and with 1000 classes, and forward GFLOPs, at 224 pixels.
PUBLISHED = [
    ("Ti/16", 5.5, 5.72, 2.51),
    # Steiner et al. 2022, table 3 (timm's counts); Xiao et al. 2021, table 2, in multiply-adds there.
    ("R+Ti/16", None, 6.34, 0.867),
    ("R26+S/32", None, 36.43, 6.93),
    ("R26+B/32", None, 101.38, 13.42),
    ("R50+B/16", None, 98.66, 43.07),
    ("R50+L/32", None, 328.99, 38.83),
    ("ViTC-1GF/16", None, 4.6, 2.2),
    ("ViTC-4GF/16", None, 17.8, 7.9),
    ("ViTC-18GF/16", None, 81.6, 35.4),
    ("ViTC-36GF/16", None, 167.8, 70.0),
    ("S/16", 21.7, 22.05, 9.20),
    ("M/16", 38.3, None, 16.0),
    ("B/16", 85.8, 86.57, 35.1),
    ("B/32", 87.5, None, 8.8),
    ("L/16", 303.3, 304.33, 123.1),
    ("L/14", 303.2, 304.20, 162.0),
    ("So400m/14", 412.4, None, 219.8),
    ("H/14", 630.8, 632.05, 334.6),
    ("g/14", 1011, 1012.6, 534.1),
    ("g-opt/16", 1135, None, 456),
    ("G/14", 1843, 1844.4, 967.5),
    ("G-opt/16", 1663, None, 666),
    ("e/14", 3805, 3807, 1981),
    ("7B/16", None, 6721, 2671),
    ("22B/14", None, 21758, 11256),
]


@pytest.mark.parametrize(("name", "backbone_millions", "total_millions", "forward_gflops"), PUBLISHED)
def test_variants_have_the_published_sizes(
    name: str, backbone_millions: float | None, total_millions: float | None, forward_gflops: float
) -> None:
    model = ViTConfig(variant=name, image_size=224)
    with torch.device("meta"):
        objective = SupervisedConfig(num_classes=1000).build(model.build())
    backbone = sum(parameter.numel() for parameter in objective.backbone.parameters())
    total = sum(parameter.numel() for parameter in objective.parameters())
    for count, published in ((backbone, backbone_millions), (total, total_millions)):
        if published is not None:
            assert count / 1e6 == pytest.approx(published, abs=_last_digit(published))
    assert forward_flops(model.shape, num_classes=1000) / 1e9 == pytest.approx(forward_gflops, abs=_last_digit(forward_gflops))


CHANGES: list[dict] = [
    {},
    {"pooling": "mean", "positions": "sincos2d_mae"},
    {"mlp_width": 40, "num_channels": 1},
    {"mlp": "swiglu", "layer_scale": 0.1, "num_registers": 3},
    {"distillation_token": True, "qk_norm": True, "qkv_bias": "no_key"},
    {"pooling": "map", "parallel": True, "norm": "rms", "mlp_bias": False},
    {"pooling": "mean", "window": 3, "global_blocks": (1,)},
    {"patch_size": 16, "stem": {"kind": "resnet", "units": (1, 1), "width": 32}},
    {"stem": {"kind": "convolutions", "widths": (4, 8), "strides": (2, 2)}},
    {"pooling": "map", "attention": "cross_covariance", "layer_scale": 0.1},
]


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("pre_logits", [None, 24])
def test_counts_equal_torchs_counter(changes: dict, pre_logits: int | None) -> None:
    model = ViTConfig.model_validate({"variant": "mu/8", "image_size": 32, "depth": 2, **changes})
    head = {"num_classes": 11, "pre_logits_width": pre_logits}
    with torch.device("meta"):
        objective = SupervisedConfig(num_classes=11, pre_logits=pre_logits).build(model.build())
        image_BCHW = torch.empty(1, model.num_channels, 32, 32)

    def counted(image_BCHW: torch.Tensor, *, backward: bool) -> int:
        with FlopCounterMode(display=False) as counter:
            logits = objective._logits(image_BCHW, draws=None)
            if backward:
                sum(logits_BK.sum() for logits_BK in logits).backward()
        return counter.get_total_flops()

    assert counted(image_BCHW, backward=False) == forward_flops(model.shape, **head)
    if model.attention == "cross_covariance":
        return  # torch's counter takes the gradient of a depthwise kernel for a dense one's
    # With a gradient of the input, which training does not need: the convention counts it.
    assert counted(image_BCHW.requires_grad_(), backward=True) == step_flops(model.shape, **head)


@pytest.mark.parametrize("pooling", ["cls", "mean", "map"])
@pytest.mark.parametrize("merging", [{"per_block": 2}, {"per_block": 4, "schedule": "decreasing"}, {"per_block": 9}])
def test_counts_of_merging_blocks_equal_torchs_counter(pooling: str, merging: dict) -> None:
    model = ViTConfig.model_validate({"variant": "mu/8", "image_size": 40, "depth": 3, "pooling": pooling, "token_merging": merging})
    with torch.device("meta"):
        backbone, image_BCHW = model.build(), torch.empty(1, 3, 40, 40)
    with FlopCounterMode(display=False) as counter:
        features = backbone(image_BCHW)
    counts = counter.get_flop_counts()
    for index, block in enumerate(model.shape.blocks):
        assert sum(counts[f"MergingViT.blocks.{index}"].values()) == block.forward_flops
    assert counter.get_total_flops() == forward_flops(model.shape)
    assert features.tokens_BND.shape[1] == model.shape.blocks[-1].mlp_tokens < model.shape.num_tokens


def _last_digit(published: float) -> float:
    """One unit of the last digit that was printed."""
    _, _, decimals = str(published).partition(".")
    return 10.0 ** -(0 if decimals in ("", "0") else len(decimals))
