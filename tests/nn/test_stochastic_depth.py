import pytest
import torch
from torch import Tensor

from vitscale.nn.context import BlockContext
from vitscale.nn.resample import Grid
from vitscale.nn.stochastic_depth import add_branch, kept_samples


def context(seed_B: Tensor, rates: list[float]) -> BlockContext:
    return BlockContext(grid=Grid(1, 1), num_prefix=0, seed_B=seed_B, kept=kept_samples(seed_B, rates=rates))


def test_each_branch_is_dropped_with_its_rate() -> None:
    kept = kept_samples(torch.arange(4000), rates=[0.0, 0.1, 0.6])
    assert kept[0] is None
    assert [len(kept_K) / 4000 for kept_K in kept[1:]] == pytest.approx([0.9, 0.4], abs=0.03)
    assert all((kept_K.diff() > 0).all() for kept_K in kept[1:])
    assert kept_samples(torch.arange(3), rates=[0.0, 0.0]) == ()


def test_a_sample_keeps_the_same_branches_in_any_batch() -> None:
    seed_B = torch.tensor([11, 5, 8, 2])
    kept = kept_samples(seed_B, rates=[0.5, 0.5])
    for index in range(4):
        alone = kept_samples(seed_B[index : index + 1], rates=[0.5, 0.5])
        assert [len(kept_K) == 1 for kept_K in alone] == [index in kept_K for kept_K in kept]


def test_runs_the_branch_on_the_samples_that_keep_it_alone() -> None:
    seed_B = torch.arange(16)
    seen: list[Tensor] = []

    def branch(x_KND: Tensor, found: BlockContext) -> Tensor:
        assert len(found.seed_B) == len(x_KND)
        seen.append(x_KND)
        return 3 * x_KND

    x_BND = torch.randn(16, 2, 4, requires_grad=True)
    drawn = context(seed_B, [0.5])
    y_BND = add_branch(x_BND, branch, context=drawn, index=0, rate=0.5)
    keeps_B = torch.zeros(16, dtype=torch.bool).index_fill_(0, drawn.kept[0], True)
    assert 0 < keeps_B.sum() < 16
    assert torch.equal(seen[0], x_BND[keeps_B])
    expected_BND = torch.where(keeps_B.view(-1, 1, 1), 7.0, 1.0) * x_BND  # 1 + 3 / (1 - 0.5)
    torch.testing.assert_close(y_BND, expected_BND)
    y_BND.sum().backward()
    torch.testing.assert_close(x_BND.grad, torch.where(keeps_B.view(-1, 1, 1), 7.0, 1.0).expand_as(x_BND))


def test_a_branch_that_no_sample_keeps_still_has_gradients() -> None:
    layer = torch.nn.Linear(4, 4)
    seed_B = next(torch.tensor([seed]) for seed in range(100) if not len(kept_samples(torch.tensor([seed]), rates=[0.5])[0]))
    y_BND = add_branch(torch.ones(1, 2, 4), lambda x_BND, _: layer(x_BND), context=context(seed_B, [0.5]), index=0, rate=0.5)
    assert torch.equal(y_BND, torch.ones(1, 2, 4))
    y_BND.sum().backward()
    assert layer.weight.grad.abs().sum() == 0


def test_what_goes_past_a_branch_may_be_another_tensor() -> None:
    x_BND, past_BND = torch.randn(16, 2, 4), torch.randn(16, 1, 8)

    def branch(x_KND: Tensor, _: BlockContext) -> Tensor:
        return torch.cat([x_KND, x_KND], dim=2)[:, :1]

    drawn = context(torch.arange(16), [0.5])
    kept_K = drawn.kept[0]
    y_BND = add_branch(x_BND, branch, context=drawn, index=0, rate=0.5, past_BND=past_BND)
    expected_BND = past_BND.clone()
    expected_BND[kept_K] += 2 * branch(x_BND, drawn)[kept_K]
    torch.testing.assert_close(y_BND, expected_BND)
    plain_BND = add_branch(x_BND, branch, context=context(torch.arange(16), [0.0]), index=0, rate=0.0, past_BND=past_BND)
    assert torch.equal(plain_BND, past_BND + branch(x_BND, drawn))
