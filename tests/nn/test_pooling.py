import torch
import torch.nn.functional as F
from torch import nn

from vitscale.nn.pooling import pool_tokens


def test_cls_is_the_normalised_first_token() -> None:
    norm, tokens_BND = nn.LayerNorm(6), torch.randn(2, 4, 6)
    torch.testing.assert_close(pool_tokens(tokens_BND, norm=norm, pooling="cls"), F.layer_norm(tokens_BND, (6,))[:, 0])


def test_mean_normalises_before_it_averages() -> None:
    norm, tokens_BND = nn.LayerNorm(6), torch.randn(2, 4, 6) * torch.tensor([1.0, 5.0, 25.0, 125.0]).view(1, 4, 1)
    pooled = pool_tokens(tokens_BND, norm=norm, pooling="mean")
    torch.testing.assert_close(pooled, F.layer_norm(tokens_BND, (6,)).mean(1))
    assert not torch.allclose(pooled, F.layer_norm(tokens_BND.mean(1), (6,)), atol=0.1)
