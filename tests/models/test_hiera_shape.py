import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitscale.models import HieraConfig
from vitscale.models.flops import forward_flops, step_flops
from vitscale.nn.counter_hash import SEED_KEY
from vitscale.objectives import SupervisedConfig

# Parameters with 1000 classes as timm counts them, and billions of multiply-adds: Ryali et al. 2023, table 2 (none for the last two).
PUBLISHED = [
    ("Hiera-T", 224, 27_910_216, 5),
    ("Hiera-S", 224, 35_008_072, 6),
    ("Hiera-B", 224, 51_524_968, 9),
    ("Hiera-B+", 224, 69_896_616, 13),
    ("Hiera-L", 224, 213_739_912, 40),
    ("Hiera-H", 224, 672_779_752, 125),
    ("Hiera-abswin-S", 256, 34_361_800, None),
    ("Hiera-abswin-B", 256, 51_267_304, None),
]


@pytest.mark.parametrize(("name", "image_size", "num_parameters", "gmacs"), PUBLISHED)
def test_variants_have_the_published_sizes(name: str, image_size: int, num_parameters: int, gmacs: int | None) -> None:
    model = HieraConfig.model_validate({"variant": name, "image_size": image_size})
    with torch.device("meta"):
        objective = SupervisedConfig(num_classes=1000).build(model.build())
    assert sum(parameter.numel() for parameter in objective.parameters()) == num_parameters
    if gmacs is not None:
        assert round(forward_flops(model.shape, num_classes=1000) / 2e9) == gmacs


@pytest.mark.parametrize("changes", [{"patch_dropout": 0.3}, {"shortcut": "concatenate", "window_stages": 0, "layer_scale": 0.1}])
def test_flops_equal_torchs_counter(changes: dict) -> None:
    sizes = {"image_size": 32, "patch_size": 2, "num_channels": 2, "width": 12, "depths": (1, 2, 1), "num_heads": 2, "window_stages": 1}
    model = HieraConfig.model_validate({**sizes, **changes})
    with torch.device("meta"):
        objective = SupervisedConfig(num_classes=11).build(model.build())
        image_BCHW = torch.empty(1, 2, 32, 32, requires_grad=True)
        draws = {SEED_KEY: torch.empty(1, dtype=torch.long)} if model.patch_dropout else None

    def counted(*, backward: bool) -> int:
        with FlopCounterMode(display=False) as counter:
            logits_BK = objective.head(objective.backbone(image_BCHW, draws=draws).pooled_BD)
            if backward:
                logits_BK.sum().backward()
        return counter.get_total_flops()

    assert counted(backward=False) == forward_flops(model.shape, num_classes=11)
    assert counted(backward=True) == step_flops(model.shape, num_classes=11)


def test_images_consist_of_whole_units() -> None:
    shape = HieraConfig(variant="Hiera-T", image_size=224).shape
    assert (shape.unit_side, shape.patch_size, shape.kernel_side, shape.grid, shape.width) == (8, 32, 7, 56, 768)
    assert HieraConfig(variant="Hiera-T", image_size=224, patch_dropout=0.5).shape.blocks[0].num_tokens == 24 * 64
    first, last = shape.blocks[0], shape.blocks[-1]
    assert (first.num_tokens, first.attended_tokens, first.pooled_input) == (3136, 64, None)
    assert (last.num_tokens, last.attended_tokens) == (49, 49)
    assert shape.blocks[3].pooled_input is not None
    assert (shape.blocks[3].pooled_input.num_tokens, shape.blocks[3].attended_tokens, shape.blocks[3].num_tokens) == (784, 16, 196)
