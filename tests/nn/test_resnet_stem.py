import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from vitscale.nn.init import initial_value, materialise
from vitscale.nn.resnet_stem import ResNetStem, ResNetStemConfig


@pytest.mark.parametrize("units", [(), (1,), (2, 1, 1)])
def test_the_map_has_the_sizes_that_the_configuration_says(units: tuple[int, ...]) -> None:
    config = ResNetStemConfig(units=units, width=32)
    stem = materialise(config.build(num_channels=2), seed=0)
    map_BCHW = stem(torch.randn(1, 2, 32, 64))
    assert map_BCHW.shape == (1, config.out_channels(2), 32 // config.stride, 64 // config.stride)
    assert config.shape(num_channels=2, image_size=32).result_elements == config.out_channels(2) * (32 // config.stride) ** 2


@pytest.mark.parametrize("units", [(), (2, 1, 2)])
def test_flops_equal_torchs_counter(units: tuple[int, ...]) -> None:
    config = ResNetStemConfig(units=units, width=64)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        config.build(num_channels=3)(torch.empty(1, 3, 64, 64))
    assert counter.get_total_flops() == config.shape(num_channels=3, image_size=64).forward_flops


def test_a_unit_starts_as_its_shortcut() -> None:
    stem = materialise(ResNetStemConfig(units=(2,), width=32).build(num_channels=1), seed=0)
    assert isinstance(stem, ResNetStem)
    first, second = stem.stages[0]
    x_BCHW = torch.randn(1, 32, 4, 4)
    y_BCHW = first(x_BCHW)
    torch.testing.assert_close(y_BCHW, first.norm_proj(first.conv_proj(x_BCHW)).relu())
    assert torch.equal(second(y_BCHW), y_BCHW)


def test_has_no_buffers_and_a_recipe_for_every_parameter() -> None:
    with torch.device("meta"):
        stem = ResNetStemConfig(units=(1, 1), width=32).build(num_channels=1)
    assert list(stem.buffers()) == []
    for name, parameter in stem.named_parameters():
        initial_value(parameter, name=name, shape=parameter.shape, seed=0)


@pytest.mark.parametrize("changes", [{"width": 48}, {"width": 0}, {"units": (2, 0)}])
def test_sizes_that_cannot_be_are_refused(changes: dict) -> None:
    with pytest.raises(ValidationError, match=r"multiple of 32|greater than or equal"):
        ResNetStemConfig(**changes)
