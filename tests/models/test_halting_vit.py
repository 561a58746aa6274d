import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.oracles import TimmOracle, random_classifier
from vitscale.engine.recompute import apply_recompute
from vitscale.models import ViTConfig

SMALL = {"image_size": 32, "patch_size": 8, "num_channels": 2, "width": 32, "depth": 4, "mlp_width": 40, "num_heads": 4}
HALTING = {"gate_scale": 2.0, "gate_shift": -1.7, "ponder_weight": 0.1, "prior": {"depth": 2, "weight": 0.2}}


def config(**changes: object) -> ViTConfig:
    return ViTConfig.model_validate({**SMALL, "halting": HALTING, **changes})


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 2, 32, 32, generator=torch.Generator().manual_seed(1))


def halting_timm(model: VisionTransformer, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The mean patch (B, D) and the loss (B,) by masks, as in NVlabs/A-ViT: nothing leaves, what has halted is hidden from the others."""
    x_BND = model._pos_embed(model.patch_embed(image_BCHW))
    alive_BN, left_BN, output_BND = torch.ones(x_BND.shape[:2]), torch.ones(x_BND.shape[:2]), torch.zeros_like(x_BND)
    blocks_BN, remainder_BN, shares = torch.zeros(x_BND.shape[:2]), torch.zeros(x_BND.shape[:2]), []
    for index, block in enumerate(model.blocks):
        attention, hidden_B11N = block.attn, (1 - alive_BN)[:, None, None] * -1000.0
        q_BHNK, k_BHNK, v_BHNK = attention.qkv(block.norm1(x_BND)).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores_BHNN = q_BHNK @ k_BHNK.transpose(2, 3) * attention.head_dim**-0.5 + hidden_B11N
        x_BND = x_BND + attention.proj((scores_BHNN.softmax(dim=-1) @ v_BHNK).transpose(1, 2).flatten(2))
        x_BND = x_BND + block.mlp(block.norm2(x_BND))
        gate_BN = torch.sigmoid(2.0 * x_BND[..., 0] - 1.7)
        if index == len(model.blocks) - 1:
            gate_BN = torch.ones_like(gate_BN)
        halts_BN = ((1 - left_BN + gate_BN) >= 0.99).float() * alive_BN
        share_BN = halts_BN * left_BN + (alive_BN - halts_BN) * gate_BN
        output_BND = output_BND + share_BN[..., None] * x_BND
        blocks_BN, remainder_BN = blocks_BN + alive_BN, remainder_BN + halts_BN * left_BN
        shares.append(share_BN.mean(dim=1))
        left_BN, alive_BN = left_BN - (alive_BN - halts_BN) * gate_BN, alive_BN - halts_BN
    prior_L = torch.softmax(-0.5 * (torch.arange(1.0, len(shares) + 1) - 2) ** 2, dim=0)
    shares_BL = torch.stack(shares, dim=1)
    divergence_B = F.kl_div(prior_L.log(), shares_BL, reduction="none").sum(dim=1)
    return model.norm(output_BND).mean(dim=1), 0.1 * (blocks_BN + remainder_BN).mean(dim=1) + 0.2 * divergence_B


def test_equals_halting_by_masks_in_timms_layers_in_logits_and_gradients() -> None:
    ours = random_classifier(config(pooling="mean"), num_classes=7)
    theirs = TimmOracle(config(pooling="mean", halting=None), ours)
    features, label_B = ours.backbone(images()), torch.tensor([0, 6, 3])
    pooled_BD, expected_loss_B = halting_timm(theirs.model, images())
    our_logits, their_logits = ours.head(features.pooled_BD), theirs.model.head(pooled_BD)
    assert len(features.tokens_BL.unique()) > 3  # some halt early, some late
    assert (our_logits - their_logits).abs().max() <= 1e-6
    torch.testing.assert_close(features.loss_B, expected_loss_B, rtol=1e-6, atol=1e-6)
    (F.cross_entropy(our_logits, label_B) + features.loss_B.mean()).backward()
    (F.cross_entropy(their_logits, label_B) + expected_loss_B.mean()).backward()
    for name, parameter in ours.named_parameters():
        expected = theirs.gradient(name).reshape(parameter.shape)
        assert expected.abs().max() > 0, name
        assert (parameter.grad - expected).abs().max() <= 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize("pooling", ["cls", "mean", "map"])
def test_where_no_token_halts_it_is_the_plain_model_to_the_bit(pooling: str) -> None:
    never = random_classifier(config(pooling=pooling, halting={"gate_shift": -1000.0}), num_classes=7)
    plain = random_classifier(config(pooling=pooling, halting=None), num_classes=7)
    for objective in (plain, never):
        objective._logits(images(), draws=None)[0].square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), never.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_what_an_image_takes_does_not_depend_on_its_batch() -> None:
    vit = random_classifier(config(), num_classes=7).backbone
    together = vit(images())
    for index in range(3):
        alone = vit(images()[index : index + 1])
        assert torch.equal(alone.tokens_BL[0], together.tokens_BL[index])
        torch.testing.assert_close(alone.pooled_BD[0], together.pooled_BD[index], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.loss_B[0], together.loss_B[index])


def test_the_flops_of_an_image_are_those_of_its_tokens() -> None:
    model = config()
    vit = random_classifier(model, num_classes=7).backbone
    # torch's counter does not know the fused kernel of CPUs.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tokens_L = vit(images(1)).tokens_BL[0].tolist()
    tables = model.shape.flops_by_tokens()
    blocks = sum(table[count] for table, count in zip(tables, tokens_L, strict=True))
    whole = sum(table[-1] for table in tables)
    assert blocks < 0.9 * whole
    assert counter.get_total_flops() == model.shape.forward_flops - whole + blocks


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_recomputed_blocks_give_the_same(mode: str) -> None:
    grads = []
    for recompute in ("none", mode):
        vit = random_classifier(config(), num_classes=7).backbone
        apply_recompute(vit, mode=recompute, every=1)
        features = vit(images())
        (features.pooled_BD.square().sum() + features.loss_B.sum()).backward()
        grads.append([parameter.grad for parameter in vit.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
