import torch
import torch.nn.functional as F
from torch import nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from vitscale.nn.init import materialise
from vitscale.nn.pooling import AttentionPool, pool_tokens


def test_cls_is_the_normalised_first_token() -> None:
    norm, tokens_BND = nn.LayerNorm(6), torch.randn(2, 4, 6)
    torch.testing.assert_close(pool_tokens(tokens_BND, norm=norm, pooling="cls"), F.layer_norm(tokens_BND, (6,))[:, 0])


def test_mean_normalises_before_it_averages() -> None:
    norm, tokens_BND = nn.LayerNorm(6), torch.randn(2, 4, 6) * torch.tensor([1.0, 5.0, 25.0, 125.0]).view(1, 4, 1)
    pooled = pool_tokens(tokens_BND, norm=norm, pooling="mean")
    torch.testing.assert_close(pooled, F.layer_norm(tokens_BND, (6,)).mean(1))
    assert not torch.allclose(pooled, F.layer_norm(tokens_BND.mean(1), (6,)), atol=0.1)


def test_mean_leaves_the_prefix_out_and_may_come_before_the_norm() -> None:
    norm, tokens_BND = nn.LayerNorm(6), torch.randn(2, 5, 6) * torch.tensor([9.0, 1.0, 5.0, 25.0, 125.0]).view(1, 5, 1)
    pooled = pool_tokens(tokens_BND, norm=norm, pooling="mean", norm_place="pooled", num_prefix=2)
    torch.testing.assert_close(pooled, F.layer_norm(tokens_BND[:, 2:].mean(1), (6,)))


def test_attention_pooling_equals_siglips_in_transformers() -> None:
    theirs = SiglipMultiheadAttentionPoolingHead(
        SiglipVisionConfig(hidden_size=12, num_attention_heads=3, intermediate_size=20, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-3)
    )
    ours = materialise(AttentionPool(width=12, num_heads=3, mlp_width=20, gelu="tanh", norm="layer", norm_eps=1e-3), seed=0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        theirs.probe.copy_(ours.latent)
        theirs.attention.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.kv.weight]))
        theirs.attention.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.kv.bias]))
        theirs.attention.out_proj.load_state_dict(ours.proj.state_dict())
        theirs.layernorm.load_state_dict(ours.norm.state_dict())
        theirs.mlp.load_state_dict(ours.mlp.state_dict())
    tokens_BND = torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(tokens_BND), theirs(tokens_BND))
