import pytest

from vitscale.config import ConfigError, decode
from vitscale.models import SwinConfig

SMALL = {"image_size": 16, "patch_size": 2, "num_channels": 2, "width": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}


def test_windows_default_to_those_of_the_released_models() -> None:
    assert [stage.window for stage in SwinConfig(variant="Swin-T", image_size=224).shape.stages] == [7, 7, 7, 7]
    assert [stage.window for stage in SwinConfig(variant="SwinV2-T", image_size=256).shape.stages] == [8, 8, 8, 8]


def test_a_variant_fixes_the_version_and_proposes_how_colour_is_normalised() -> None:
    second = SwinConfig(variant="SwinV2-T", image_size=256)
    assert (second.version, second.image_mean) == (2, (0.485, 0.456, 0.406))
    assert SwinConfig(variant="SwinV2-T", image_size=256, num_channels=1).image_mean == (0.5,)
    assert SwinConfig.model_validate({"variant": "Swin-T", "image_size": 64, "image_mean": [0.1], "depths": [1, 1, 1, 1]}).depths == (
        1,
        1,
        1,
        1,
    )


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({"image_size": 30, "variant": "Swin-T"}, ["image_size: 30 is not a multiple of model.patch_size 4; use for example 32"]),
        (
            {"image_size": 32, "width": 8},
            ["depths: required where no model.variant is given", "num_heads: required where no model.variant is given"],
        ),
        (
            {**SMALL, "num_heads": (2, 4, 8)},
            ["num_heads: 3 numbers for 2 stages; model.depths and model.num_heads have one for each"],
        ),
        ({**SMALL, "num_heads": (2, 5)}, ["num_heads: the width 32 of stage 2 is not a multiple of its 5 heads"]),
        (
            {**SMALL, "pretrained_window_sizes": (4, 4)},
            ["pretrained_window_sizes: has no meaning in version 1, whose table is resampled by init_from"],
        ),
        (
            {**SMALL, "depths": (1,), "num_heads": (2,), "stochastic_depth": 0.1},
            ["stochastic_depth: drops nothing at the first block, and there is no other; leave it out"],
        ),
        ({**SMALL, "version": 2, "pretrained_window_sizes": (4,)}, ["pretrained_window_sizes: 1 numbers for 2 stages; give one for each"]),
        (
            {"image_size": 32, "variant": "SwinV2-T", "version": 1},
            ["version: 1 contradicts model.variant SwinV2-T, which has 2"],
        ),
        ({"image_size": 32, "variant": "Swin-Q"}, ["variant: expected 'Swin-T', 'Swin-S'"]),
        ({**SMALL, "resampling": "google"}, ["resampling: google has no rule for tables of relative positions; use one of timm, hf"]),
        ({**SMALL, "version": 2, "resampling": "timm"}, ["resampling: has no effect in version 2, which computes its biases"]),
        ({**SMALL, "image_mean": (0.1, 0.2, 0.3)}, ["image_mean: give one number, or one for each of the model.num_channels 2, not 3"]),
    ],
)
def test_wrong_sizes_are_all_named(values: dict, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(SwinConfig, values=values, source="run.yaml")
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        assert line.startswith(problem)
