import torch

from vitscale.nn.context import BlockContext
from vitscale.nn.resample import Grid


def test_the_context_of_some_samples_has_their_seeds() -> None:
    context = BlockContext(grid=Grid(2, 3), num_prefix=1, seed_B=torch.tensor([7, 8, 9]))
    found = context.of_samples(torch.tensor([2, 0]))
    assert found.seed_B.tolist() == [9, 7]
    assert (found.grid, found.num_prefix) == (Grid(2, 3), 1)
