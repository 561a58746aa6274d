"""PI-resize of patch kernels: equal to timm's, and the property that it was made for."""

import pytest
import torch
import torch.nn.functional as F

from vitscale.nn.patch_kernel import resample_patch_kernel


def _kernel(*, num_channels: int, side: int, width: int = 5) -> torch.Tensor:
    return torch.randn(width, num_channels * side**2, generator=torch.Generator().manual_seed(side))


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize(("source", "target"), [(4, 6), (16, 14), (7, 4), (4, 16), (3, 1), (1, 3)])
def test_it_equals_timms(num_channels: int, source: int, target: int) -> None:
    from timm.layers.patch_embed import resample_patch_embed

    kernel = _kernel(num_channels=num_channels, side=source)
    expected = resample_patch_embed(kernel.double().view(5, num_channels, source, source), [target, target]).flatten(1)
    resampled = resample_patch_kernel(kernel, num_channels=num_channels, source=source, target=target)
    assert resampled.dtype == torch.float32
    # timm resizes in fp32, hence the tolerance.
    torch.testing.assert_close(resampled, expected.float(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("source", "target"), [(4, 6), (16, 14), (7, 4), (3, 1)])
def test_flexivits_is_timms_with_bilinear_patches(source: int, target: int) -> None:
    from timm.layers.patch_embed import resample_patch_embed

    kernel = _kernel(num_channels=3, side=source)
    theirs = kernel.view(5, 3, source, source)
    expected = resample_patch_embed(theirs, [target, target], interpolation="bilinear", antialias=False).flatten(1)
    resampled = resample_patch_kernel(kernel, num_channels=3, source=source, target=target, mode="flexivit")
    torch.testing.assert_close(resampled, expected, rtol=1e-4, atol=2e-5)
    assert (resampled - resample_patch_kernel(kernel, num_channels=3, source=source, target=target)).abs().max() > 1e-3


@pytest.mark.parametrize(("source", "target"), [(4, 6), (7, 14), (14, 16)])
def test_an_enlarged_patch_keeps_its_embedding(source: int, target: int) -> None:
    kernel = _kernel(num_channels=3, side=source)
    patch = torch.randn(8, 3, source, source, generator=torch.Generator().manual_seed(1))
    enlarged = F.interpolate(patch, size=(target, target), mode="bicubic", antialias=True, align_corners=False)
    resampled = resample_patch_kernel(kernel, num_channels=3, source=source, target=target)
    torch.testing.assert_close(enlarged.flatten(1) @ resampled.T, patch.flatten(1) @ kernel.T, rtol=1e-4, atol=1e-4)


def test_the_same_size_is_not_touched() -> None:
    kernel = _kernel(num_channels=2, side=4)
    assert torch.equal(resample_patch_kernel(kernel, num_channels=2, source=4, target=4), kernel)


def test_a_kernel_of_another_size_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        resample_patch_kernel(_kernel(num_channels=1, side=4), num_channels=1, source=5, target=8)
