import pytest
from pydantic import TypeAdapter, ValidationError

from vitscale.nn.conv_stem import ConvStemConfig
from vitscale.nn.resnet_stem import ResNetStemConfig
from vitscale.nn.stems import PatchStemConfig, StemConfig


def test_the_kind_tells_the_stems_apart() -> None:
    decode = TypeAdapter(StemConfig).validate_python
    assert decode({"kind": "patches"}) == PatchStemConfig()
    assert decode({"kind": "resnet", "units": (2, 2)}) == ResNetStemConfig(units=(2, 2))
    assert decode({"kind": "convolutions", "widths": (8,)}) == ConvStemConfig(widths=(8,))
    with pytest.raises(ValidationError, match="kind"):
        decode({"kind": "patch"})


def test_patches_cost_nothing_before_they_are_cut() -> None:
    stem = PatchStemConfig()
    assert (stem.stride, stem.out_channels(3), stem.build(num_channels=3), stem.shape(num_channels=3, image_size=8)) == (1, 3, None, None)
