import torch
from torch import Tensor

from vitscale.nn.grid_batch import GridBatch
from vitscale.nn.resample import Grid

GRIDS = torch.tensor([[2, 3], [1, 1], [2, 3], [3, 2]])


def numbered(grid: Grid) -> Tensor:
    """(1, 1 + N, 1): 1000 for the prefix token, then 100 R + 10 C + place for the patches."""
    places = torch.arange(grid.rows * grid.columns) + 100.0 * grid.rows + 10.0 * grid.columns
    return torch.cat([torch.tensor([1000.0]), places]).view(1, -1, 1)


def test_real_tokens_are_the_prefix_and_the_first_patches() -> None:
    mask = GridBatch(GRIDS, length=7).mask(num_prefix=2)
    assert mask.sum(dim=1).tolist() == [8, 3, 8, 8]
    assert mask.int().diff(dim=1).amax() <= 0, "no real token comes after one that is not"


def test_each_image_has_the_table_of_its_grid() -> None:
    calls: list[Grid] = []

    def make(grid: Grid) -> Tensor:
        calls.append(grid)
        return numbered(grid)

    table = GridBatch(GRIDS, length=7).table(make, num_prefix=1)
    assert len(calls) == 3, "a table is made once for all images of a grid"
    assert table.shape == (4, 8, 1)
    for row, (rows, columns) in zip(table, GRIDS.tolist(), strict=True):
        expected = numbered(Grid(rows=rows, columns=columns))[0]
        assert torch.equal(row[: len(expected)], expected)
        assert torch.equal(row[len(expected) :], expected[-1:].expand(8 - len(expected), 1))


def test_the_gradient_of_a_table_is_the_sum_over_its_images() -> None:
    weight = torch.ones(1, 7, 1, requires_grad=True)
    table = GridBatch(GRIDS, length=7).table(lambda grid: weight[:, : grid.rows * grid.columns])
    (table.squeeze(-1) * GridBatch(GRIDS, length=7).mask(num_prefix=0)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [4, 3, 3, 3, 3, 3, 0]
