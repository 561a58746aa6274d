import pytest

from vitscale.config import ConfigError, decode
from vitscale.models import HieraConfig

SMALL = {"image_size": 16, "patch_size": 2, "num_channels": 2, "width": 12, "depths": (1, 2, 1), "num_heads": 2}


def test_a_block_that_pools_attends_as_the_stage_before_it() -> None:
    shape = HieraConfig.model_validate({**SMALL, "depths": (1, 2, 2), "window_stages": 1}).shape
    assert [spec.within_units for spec in shape.specs] == [True, True, False, False, False]
    assert [spec.pools for spec in shape.specs] == [False, True, False, True, False]
    assert [(spec.input_width, spec.width, spec.num_heads) for spec in shape.specs[:2]] == [(12, 12, 2), (12, 24, 4)]
    assert [spec.unit_tokens for spec in shape.specs] == [16, 4, 4, 1, 1]


def test_drop_rates_rise_from_block_to_block() -> None:
    assert HieraConfig.model_validate({**SMALL, "stochastic_depth": 0.3}).drop_rates == pytest.approx((0.0, 0.1, 0.2, 0.3))


def test_a_variant_fixes_what_makes_it_what_it_is_and_proposes_the_rest() -> None:
    second = HieraConfig(variant="Hiera-abswin-S", image_size=256)
    assert (second.window_positions, second.position_grid, second.shortcut, second.resampling) == (True, 16, "concatenate", "timm")
    assert second.image_mean == (0.485, 0.456, 0.406)
    assert HieraConfig(variant="Hiera-T", image_size=224).resampling == "hf"
    assert HieraConfig(variant="Hiera-abswin-S", image_size=256, num_channels=1, resampling="hf").resampling == "hf"


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        (
            {"image_size": 112, "variant": "Hiera-T"},
            [
                "image_size: 112 is not a multiple of 32, the pixels of a mask unit: model.patch_size 4, doubled by each of the 4 stages"
                " after the first; use for example 128"
            ],
        ),
        (
            {"image_size": 32, "width": 8},
            ["depths: required where no model.variant is given", "num_heads: required where no model.variant is given"],
        ),
        ({**SMALL, "num_heads": 5}, ["num_heads: the width 12 of the first stage is not a multiple of its 5 heads"]),
        ({**SMALL, "depths": (2,)}, ["depths: expected"]),
        ({**SMALL, "window_stages": 4}, ["window_stages: 4 of 3 stages; use at most 3"]),
        ({**SMALL, "position_grid": 4}, ["position_grid: has an effect with model.window_positions only"]),
        (
            {"image_size": 256, "variant": "Hiera-abswin-B", "layer_scale": 0.1},
            ["layer_scale: 0.1 contradicts model.variant"],
        ),
        ({**SMALL, "image_std": (0.0,)}, ["image_std: every number must be greater than 0"]),
    ],
)
def test_wrong_settings_are_all_named(values: dict, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(HieraConfig, values=values, source="run.yaml")
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        assert line.startswith(problem)
