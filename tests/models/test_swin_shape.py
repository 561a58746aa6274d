import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitscale.models import SwinConfig
from vitscale.models.flops import forward_flops, step_flops
from vitscale.objectives import SupervisedConfig

SMALL = {"image_size": 16, "patch_size": 2, "num_channels": 2, "width": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
VERSIONS = (1, 2)

# Millions of parameters with 1000 classes and billions of multiply-adds: Liu et al. 2021, table 1 (L: appendix), and 2022, table 5;
# parameters with more digits as timm counts them.
PUBLISHED = [
    ("Swin-T", 224, 7, 28.288354, 4.5),
    ("Swin-S", 224, 7, 49.606258, 8.7),
    ("Swin-B", 224, 7, 87.768224, 15.4),
    ("Swin-L", 224, 7, 196.532476, 34.5),
    ("SwinV2-T", 256, 8, 28.347154, 5.9),
    ("SwinV2-S", 256, 8, 49.728418, 11.5),
    ("SwinV2-B", 256, 8, 87.918816, 20.3),
    ("SwinV2-L", 192, 12, 196.739932, None),
]


@pytest.mark.parametrize(("name", "image_size", "window", "millions", "gmacs"), PUBLISHED)
def test_variants_have_the_published_sizes(name: str, image_size: int, window: int, millions: float, gmacs: float | None) -> None:
    model = SwinConfig.model_validate({"variant": name, "image_size": image_size, "window_size": window})
    with torch.device("meta"):
        objective = SupervisedConfig(num_classes=1000).build(model.build())
    assert sum(parameter.numel() for parameter in objective.parameters()) / 1e6 == pytest.approx(millions, abs=1e-6)
    if gmacs is not None:
        assert forward_flops(model.shape, num_classes=1000) / 2e9 == pytest.approx(gmacs, abs=0.1)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("changes", [{"depths": (2,), "num_heads": (2,)}, {"image_size": 20, "depths": (1, 1), "window_size": 3}])
def test_flops_equal_torchs_counter(version: int, changes: dict) -> None:
    model = SwinConfig.model_validate({**SMALL, "version": version, **changes})
    with torch.device("meta"):
        objective = SupervisedConfig(num_classes=11).build(model.build())
        image_BCHW = torch.empty(1, 2, model.image_size, model.image_size, requires_grad=True)

    def counted(*, backward: bool) -> int:
        with FlopCounterMode(display=False) as counter:
            logits_BK = objective.head(objective.backbone(image_BCHW).pooled_BD)
            if backward:
                logits_BK.sum().backward()
        return counter.get_total_flops()

    # Once for a batch: the networks of the position biases, of two inputs that need no gradient.
    stages = model.shape.stages
    pairs = [(stage.depth, (2 * stage.window - 1) ** 2, stage.num_heads) for stage in stages] if version == 2 else []
    first = sum(2 * depth * offsets * 512 * 2 for depth, offsets, _ in pairs)
    second = sum(2 * depth * offsets * 512 * heads for depth, offsets, heads in pairs)
    assert counted(backward=False) == forward_flops(model.shape, num_classes=11) + first + second
    assert counted(backward=True) == step_flops(model.shape, num_classes=11) + 2 * first + 3 * second


def test_windows_are_filled_up_and_as_small_as_their_map() -> None:
    first, second, third = SwinConfig(
        width=8, depths=(2, 1, 1), num_heads=(1, 1, 1), image_size=28, patch_size=4, window_size=5
    ).shape.stages
    assert [(stage.grid, stage.window, stage.shift) for stage in (first, second, third)] == [(7, 5, 2), (4, 4, 0), (2, 2, 0)]
    assert (first.block.num_tokens, first.block.padding_tokens, first.block.attended_tokens) == (49, 51, 25)
