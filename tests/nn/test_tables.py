import torch
from torch import Tensor

from vitscale.nn.tables import TableCache


def test_makes_each_key_once_for_each_type_and_device() -> None:
    asked = []

    def make(length: int) -> Tensor:
        asked.append(length)
        return torch.arange(length, dtype=torch.float64) / 3

    tables, x = TableCache(make), torch.zeros(1)
    assert tables.like(x, 4) is tables.like(x, 4)
    assert torch.equal(tables.like(x.bfloat16(), 4), (torch.arange(4, dtype=torch.float64) / 3).bfloat16())
    assert tables.like(x.to("meta"), 4).is_meta
    assert tables.like(x, 5).shape == (5,)
    assert asked == [4, 4, 4, 5]


def test_is_made_on_the_cpu_while_a_model_is_built_on_the_meta_device() -> None:
    x = torch.zeros(1)
    with torch.device("meta"):
        table = TableCache(lambda: torch.ones(3)).like(x)
    assert table.tolist() == [1.0, 1.0, 1.0]


def test_a_table_made_during_evaluation_can_be_trained_with() -> None:
    tables, x = TableCache(lambda: torch.ones(4)), torch.ones(4, requires_grad=True)
    with torch.inference_mode():
        tables.like(x)
    (x * tables.like(x)).sum().backward()  # multiplication saves the table for backward
    assert torch.equal(x.grad, torch.ones(4))
