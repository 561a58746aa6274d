from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vitscale.nn.block import BlockSpec
from vitscale.nn.halting import Halting, HaltingBlock, HaltingConfig, divergence, log_prior, pack
from vitscale.nn.init import materialise


def test_rows_hold_each_images_tokens_and_fill_up() -> None:
    packing = pack(torch.tensor([0, 0, 3, 3, 3, 4]), num_images=6)
    assert packing.slot_IM.tolist() == [[0, 1, 0], [2, 3, 4], [5, 0, 0]]
    assert packing.is_token_IM.int().tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert packing.slot_IM.flatten()[packing.place_T].tolist() == [0, 1, 2, 3, 4, 5]


def test_nothing_is_packed_into_no_rows() -> None:
    packing = pack(torch.zeros(0, dtype=torch.int64), num_images=2)
    assert packing.slot_IM.shape == (0, 0)
    assert packing.place_T.shape == (0,)


def block(**changes: Any) -> HaltingBlock:
    return materialise(HaltingBlock(BlockSpec(width=16, num_heads=2, mlp_width=24, **changes), index=0), seed=0)


def test_tokens_attend_to_those_of_their_own_image() -> None:
    x_1TD, images = torch.randn(1, 6, 16, requires_grad=True), [[0, 1], [2, 3, 4], [5]]
    together = block()(x_1TD, num_tokens=9, packing=pack(torch.tensor([0, 0, 3, 3, 3, 4]), num_images=6))
    alone = torch.cat([block()(x_1TD[:, image], num_tokens=len(image), packing=None) for image in images], dim=1)
    torch.testing.assert_close(together, alone)
    grads = [torch.autograd.grad(y.square().sum(), x_1TD)[0] for y in (together, alone)]
    torch.testing.assert_close(*grads)


def test_a_block_without_tokens_still_uses_all_its_parameters() -> None:
    empty = block(qk_norm=True, layer_scale=0.1)
    y_1TD = empty(torch.zeros(1, 0, 16), num_tokens=9, packing=pack(torch.zeros(0, dtype=torch.int64), num_images=2))
    y_1TD.sum().backward()
    assert y_1TD.shape == (1, 0, 16)
    assert all(not parameter.grad.any() for parameter in empty.parameters())


def halted(first_channels: list[list[float]], **changes: object):  # type: ignore[no-untyped-def]
    """Two images of two tokens, whose first channels are these after each block."""
    config = HaltingConfig.model_validate({"gate_scale": 1, "gate_shift": 0, "ponder_weight": 1, **changes})
    values = torch.tensor(first_channels).logit()
    halting = Halting(config, torch.zeros(2, 2, 1), num_blocks=len(values))
    live = torch.arange(4)
    for after in values:
        halting.after_block(after[live].view(1, -1, 1))
        live = halting._live_T
    return halting.result(), values


def test_a_token_halts_where_its_probabilities_sum_to_the_threshold() -> None:
    result, values = halted([[0.6, 0.2, 1.0, 0.3], [0.5, 0.3, 0.9, 0.3], [0.9, 0.1, 0.1, 0.7]])
    assert result.tokens_BL.tolist() == [[2, 2, 1], [2, 1, 1]]
    expected = [
        0.6 * values[0, 0] + 0.4 * values[1, 0],
        0.2 * values[0, 1] + 0.3 * values[1, 1] + 0.5 * values[2, 1],
        values[0, 2],
        0.3 * values[0, 3] + 0.3 * values[1, 3] + 0.4 * values[2, 3],
    ]
    torch.testing.assert_close(result.x_BND.flatten(), torch.stack(expected))
    # Blocks gone through, and what was left at the last of them.
    torch.testing.assert_close(result.loss_B, torch.tensor([(2.4 + 3.5) / 2, (2.0 + 3.4) / 2]))


def test_the_prior_draws_each_images_mean_probability_to_it() -> None:
    plain, _ = halted([[0.6, 0.2, 1.0, 0.3], [0.9, 0.9, 0.9, 0.9]])
    pulled, _ = halted([[0.6, 0.2, 1.0, 0.3], [0.9, 0.9, 0.9, 0.9]], prior={"depth": 1.5, "weight": 2.0})
    mean_BL = torch.tensor([[0.4, 0.6], [0.65, 0.35]])
    expected = F.kl_div(log_prior(1.5, mean_BL), mean_BL, reduction="none").sum(dim=1)
    torch.testing.assert_close(pulled.loss_B - plain.loss_B, 2 * expected)


def test_the_prior_is_a_distribution_around_its_depth() -> None:
    prior_L = log_prior(3, torch.zeros(1, 6)).exp()
    assert prior_L.sum() == pytest.approx(1)
    assert prior_L.argmax() == 2
    assert prior_L[0] == pytest.approx(prior_L[4].item())


def test_a_block_at_which_nothing_halts_has_a_finite_divergence_and_gradient() -> None:
    probability_BL = torch.tensor([[0.0, 1.0]], requires_grad=True)
    divergence(probability_BL, torch.tensor([0.5, 0.5]).log()).sum().backward()
    assert probability_BL.grad.isfinite().all()
