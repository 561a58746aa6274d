import pytest
import torch
from timm.models.naflexvit import NaFlexEmbeds

from vitscale.nn.factorised import FactorisedPositions
from vitscale.nn.init import materialise
from vitscale.nn.resample import Grid

OWN = Grid(rows=3, columns=4)


@pytest.mark.parametrize("grid", [OWN, Grid(rows=5, columns=2)])
def test_equals_timms_naflexvit(grid: Grid) -> None:
    ours = materialise(FactorisedPositions(grid=OWN, width=8), seed=0)
    theirs = NaFlexEmbeds(patch_size=2, embed_dim=8, pos_embed="factorized", pos_embed_grid_size=tuple(OWN), class_token=False)
    with torch.no_grad():
        theirs.pos_embed_y.copy_(ours.rows.unsqueeze(0))
        theirs.pos_embed_x.copy_(ours.columns.unsqueeze(0))
    expected_1ND = torch.zeros(1, grid.rows * grid.columns, 8)
    theirs._apply_factorized_pos_embed(expected_1ND, grid_size=list(grid))
    table_1ND = ours(grid=grid)
    assert (table_1ND - expected_1ND).abs().max() <= 1e-7

    weight_1ND = torch.randn(table_1ND.shape, generator=torch.Generator().manual_seed(0))
    (table_1ND * weight_1ND).sum().backward()
    theirs_1ND = torch.zeros_like(expected_1ND)
    theirs._apply_factorized_pos_embed(theirs_1ND, grid_size=list(grid))
    (theirs_1ND * weight_1ND).sum().backward()
    torch.testing.assert_close(ours.rows.grad, theirs.pos_embed_y.grad[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.columns.grad, theirs.pos_embed_x.grad[0], rtol=1e-5, atol=1e-6)


def test_is_in_the_type_of_its_parameters() -> None:
    positions = materialise(FactorisedPositions(grid=OWN, width=8), seed=0).to(torch.bfloat16)
    assert positions(grid=Grid(rows=2, columns=2)).dtype == torch.bfloat16


def test_starts_small() -> None:
    positions = materialise(FactorisedPositions(grid=Grid(rows=40, columns=40), width=64), seed=0)
    assert positions.rows.std().item() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(positions.rows, positions.columns)
