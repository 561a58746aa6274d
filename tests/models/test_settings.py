from types import SimpleNamespace

import pytest

from vitscale.models.settings import IMAGENET, as_the_variant_has_it, linear_drop_rates, tiling_side, with_proposals


def test_what_is_given_replaces_what_is_proposed() -> None:
    assert with_proposals({"depths": [1, 2]}, proposals={"depths": (3,), "width": 4}) == {"depths": (1, 2), "width": 4}


def test_colour_is_proposed_for_colour_images_only() -> None:
    assert with_proposals({}, proposals=IMAGENET) == IMAGENET
    assert with_proposals({"num_channels": 1}, proposals={**IMAGENET, "width": 4}) == {"num_channels": 1, "width": 4}


def test_a_side_is_a_multiple_of_the_patch() -> None:
    assert tiling_side(28, patch=7) == tiling_side(28, patch=None) == 28
    with pytest.raises(ValueError, match=r"30 is not a multiple of model\.patch_size 7; use for example 35"):
        tiling_side(30, patch=7)


def test_drop_rates_rise_from_nothing() -> None:
    assert linear_drop_rates(0.4, depth=3) == pytest.approx((0.0, 0.2, 0.4))
    assert linear_drop_rates(0.4, depth=1) == (0.0,)


def test_a_setting_that_the_variant_fixes_cannot_be_another() -> None:
    info = SimpleNamespace(field_name="width", data={"variant": "X"})
    assert as_the_variant_has_it(3, info, fixed={"width": 3}) == as_the_variant_has_it(3, info, fixed={}) == 3
    with pytest.raises(ValueError, match=r"3 contradicts model\.variant X, which has 4; leave it out"):
        as_the_variant_has_it(3, info, fixed={"width": 4})
