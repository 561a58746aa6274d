import pytest
import torch
from timm.models.vision_transformer_sam import get_decomposed_rel_pos_bias, get_rel_pos

from vitscale.nn.decomposed_bias import DecomposedBias, offset_vectors
from vitscale.nn.init import materialise
from vitscale.nn.resample import Grid

OWN = Grid(rows=3, columns=4)


def random_bias() -> DecomposedBias:
    bias = materialise(DecomposedBias(grid=OWN, head_width=8), seed=0)
    assert isinstance(bias, DecomposedBias)
    with torch.no_grad():
        for parameter in bias.parameters():
            assert not parameter.any()  # a new model starts without the bias
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return bias


@pytest.mark.parametrize("grid", [OWN, Grid(rows=2, columns=6), Grid(rows=5, columns=5)])
def test_equals_sam_in_bias_and_gradient(grid: Grid) -> None:
    ours, num_patches = random_bias(), grid.rows * grid.columns
    q_BHNK = torch.randn(2, 3, num_patches, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    their_q_BHNK = q_BHNK.detach().clone().requires_grad_()
    their_rows, their_columns = (table.detach().clone().requires_grad_() for table in (ours.rows, ours.columns))
    our_BHNN = ours(q_BHNK, grid=grid, num_prefix=0)
    their_ZNN = get_decomposed_rel_pos_bias(their_q_BHNK.flatten(0, 1), their_rows, their_columns, tuple(grid), tuple(grid))
    assert (our_BHNN.flatten(0, 1) - their_ZNN).abs().max() <= 2e-6  # of values up to 10
    weight_BHNN = torch.randn(our_BHNN.shape, generator=torch.Generator().manual_seed(2))
    (our_BHNN * weight_BHNN).sum().backward()
    (their_ZNN * weight_BHNN.flatten(0, 1)).sum().backward()
    for mine, other in ((ours.rows, their_rows), (ours.columns, their_columns), (q_BHNK, their_q_BHNK)):
        assert (mine.grad - other.grad).abs().max() <= 1e-5 * other.grad.abs().max()


@pytest.mark.parametrize("length", [1, 3, 4, 6])
def test_vectors_of_offsets_equal_sams(length: int) -> None:
    table_LK = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    ours = offset_vectors(table_LK, length=length)
    assert (ours - get_rel_pos(length, length, table_LK)).abs().max() <= 1e-6


def test_prefix_tokens_have_no_bias() -> None:
    ours = random_bias()
    q_BHNK = torch.randn(2, 3, 14, 8, generator=torch.Generator().manual_seed(1))
    bias_BHNN = ours(q_BHNK, grid=OWN, num_prefix=2)
    assert torch.equal(bias_BHNN[:, :, 2:, 2:], ours(q_BHNK[:, :, 2:], grid=OWN, num_prefix=0))
    assert not bias_BHNN[:, :, :2].any()
    assert not bias_BHNN[:, :, :, :2].any()


def test_is_in_the_type_of_the_queries_and_works_on_meta() -> None:
    assert random_bias().to(torch.bfloat16)(torch.zeros(1, 3, 12, 8).bfloat16(), grid=OWN, num_prefix=0).dtype == torch.bfloat16
    with torch.device("meta"):
        assert DecomposedBias(grid=OWN, head_width=8)(torch.zeros(2, 3, 13, 8), grid=OWN, num_prefix=1).shape == (2, 3, 13, 13)
