import torch
from torch import nn

from vitscale.nn.init import materialise
from vitscale.nn.resnet_stem import ResNetStemConfig


def test_every_unit_goes_through_the_unit_runner_in_order() -> None:
    stem, seen = materialise(ResNetStemConfig(units=(1, 2), width=32).build(num_channels=1), seed=0), []
    image_BCHW = torch.randn(1, 1, 16, 16)
    plain_BCHW = stem(image_BCHW)

    def runner(index: int, unit: nn.Module, x_BCHW: torch.Tensor, /, **context: object) -> torch.Tensor:
        seen.append((index, type(unit).__name__))
        return unit(x_BCHW, **context)

    stem.unit_runner = runner
    assert torch.equal(stem(image_BCHW), plain_BCHW)
    assert seen == [(0, "Root"), (1, "Bottleneck"), (2, "Bottleneck"), (3, "Bottleneck")]
