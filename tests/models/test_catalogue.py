import pytest

from vitscale.models.catalogue import catalogue


def test_lists_what_was_published_at_a_size_that_the_patch_divides() -> None:
    (large,) = catalogue(image_size=384, containing="dinov2-reg-l")
    assert (large.name, large.image_size, large.num_tokens) == ("DINOv2-reg-L/14", 392, 28 * 28 + 5)
    (plain,) = [entry for entry in catalogue(image_size=224, containing="So400m/14") if entry.name == "So400m/14"]
    assert plain.num_parameters / 1e6 == pytest.approx(412.4, abs=0.1)
    assert plain.forward_flops / 1e9 == pytest.approx(219.8, abs=0.1)


def test_hierarchies_are_listed_with_the_tokens_of_their_first_block() -> None:
    (swin,) = catalogue(image_size=225, containing="SwinV2-T")
    assert (swin.kind, swin.image_size, swin.num_tokens) == ("swin", 228, 57 * 57)
    (hiera,) = catalogue(image_size=225, containing="hiera-b+")
    assert (hiera.kind, hiera.image_size, hiera.num_tokens) == ("hiera", 256, 64 * 64)
