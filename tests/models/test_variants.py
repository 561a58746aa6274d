import pytest

from vitscale.models.variants import SIZES, parse_variant


def test_name_is_size_and_patch() -> None:
    variant = parse_variant("So400m/14")
    assert (variant.size, variant.patch_size) == (SIZES["So400m"], 14)


@pytest.mark.parametrize("name", ["S", "S/", "S/0", "S/x", "S/-4", "s/16", "", "/16"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"known|slash"):
        parse_variant(name)


def test_heads_divide_every_width() -> None:
    assert all(size.width % size.num_heads == 0 for size in SIZES.values())
