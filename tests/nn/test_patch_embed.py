import torch
import torch.nn.functional as F

from vitscale.nn.init import materialise
from vitscale.nn.patch_embed import PatchEmbed, unfold_patches


def test_equals_a_strided_convolution_on_a_grid_that_is_not_square() -> None:
    embed = materialise(PatchEmbed(num_channels=3, patch_size=4, width=10), seed=0)
    image_BCHW = torch.randn(2, 3, 8, 12)
    convolved_BDGG = F.conv2d(image_BCHW, embed.weight.reshape(10, 3, 4, 4), embed.bias, stride=4)
    torch.testing.assert_close(embed(image_BCHW), convolved_BDGG.flatten(2).transpose(1, 2))


def test_there_may_be_no_bias() -> None:
    embed = materialise(PatchEmbed(num_channels=3, patch_size=4, width=10, has_bias=False), seed=0)
    assert [name for name, _ in embed.named_parameters()] == ["weight"]
    assert torch.equal(embed(torch.zeros(1, 3, 8, 8)), torch.zeros(1, 4, 10))


def test_unfolds_row_by_row_and_channel_first() -> None:
    image_BCHW = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    patches = unfold_patches(image_BCHW, patch_size=2)
    assert patches.shape == (1, 6, 8)
    assert torch.equal(patches[0, 1], image_BCHW[0, :, 0:2, 2:4].flatten())
    assert torch.equal(patches[0, 5], image_BCHW[0, :, 2:4, 4:6].flatten())
