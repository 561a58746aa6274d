import pytest

from vitscale.config import ConfigError, decode
from vitscale.models import ViTConfig
from vitscale.models.exclusions import EXCLUSIONS

ON = {
    "parallel": True,
    "window": 2,
    "rotary": {"kind": "dinov3"},
    "position_bias": {"kind": "relative"},
    "stochastic_depth": 0.1,
    "dropout": 0.1,
    "token_merging": {"per_block": 2},
    "halting": {},
    "naflex": {"sequence_lengths": [16]},
}


@pytest.mark.parametrize(("name", "other"), [(name, other) for name, others in EXCLUSIONS.items() for other in others])
def test_settings_that_exclude_each_other_are_refused_with_the_reason(name: str, other: str) -> None:
    values = {"variant": "mu/8", "depth": 2, "image_size": 32, "pooling": "mean", "resampling": "beit", name: ON[name], other: ON[other]}
    with pytest.raises(ConfigError, match=f"{name}: {EXCLUSIONS[name][other]}; use one of the two"):
        decode(ViTConfig, values=values, source="run.yaml")
    decode(ViTConfig, values={key: value for key, value in values.items() if key != other}, source="run.yaml")
    decode(ViTConfig, values={key: value for key, value in values.items() if key != name}, source="run.yaml")
