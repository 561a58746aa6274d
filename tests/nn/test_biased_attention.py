import pytest
import torch
import torch.nn.functional as F

from vitscale.nn.biased_attention import biased_attention


@pytest.mark.parametrize("num_images", [0, 2])
def test_every_input_gets_a_gradient_with_or_without_images(num_images: int) -> None:
    q, k, v = (torch.randn(num_images, 2, 5, 4, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 2, 5, 5, requires_grad=True)
    mixed = biased_attention(q, k, v, bias_BHNN=bias, scale=0.3)
    assert torch.equal(mixed, F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3))
    mixed.square().sum().backward()
    assert all(part.grad is not None for part in (q, k, v))
    assert bias.grad is not None
    assert bias.grad.any() == bool(num_images)


def test_without_a_bias_it_is_torchs() -> None:
    q, k, v = torch.randn(3, 2, 2, 5, 4)
    assert torch.equal(biased_attention(q, k, v, bias_BHNN=None), F.scaled_dot_product_attention(q, k, v))
