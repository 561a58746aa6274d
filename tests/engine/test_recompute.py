"""Recomputing activations changes memory and time, never a bit of the result."""

# B batch, N tokens, D width

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.tiny import Block, micro_batches, tiny_engine
from vitscale.engine.recompute import Recompute, RecomputeMode, apply_recompute


class Counting(nn.Module):
    """Counts how often it runs forward."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(12)
        self.num_runs = 0

    def forward(self, x_BND: Tensor) -> Tensor:
        self.num_runs += 1
        result: Tensor = self.block(x_BND)
        return result


def train(*, stage: int = 1, **settings: Any) -> list[tuple[float, float]]:
    engine = tiny_engine(stage=stage, clip_grad_norm=1.0, **settings)
    metrics = [engine.train_step(micro_batches(step), step=step, lr=1e-2) for step in range(3)]
    engine.close()
    return [(m.loss.item(), m.grad_norm.item()) for m in metrics]


@pytest.mark.parametrize(("stage", "mode", "every"), [(1, "selective", 1), (1, "full", 2), (3, "selective", 2), (3, "full", 1)])
def test_training_is_bit_identical(stage: int, mode: RecomputeMode, every: int) -> None:
    assert train(stage=stage, recompute=mode, recompute_every=every) == train(stage=stage)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_every_nth_block_runs_twice(every: int) -> None:
    blocks = [Counting() for _ in range(6)]
    runner = Recompute(mode="full", every=every)
    x_BND = torch.randn(2, 5, 12, requires_grad=True)
    for index, block in enumerate(blocks):
        x_BND = runner(index, block, x_BND)
    x_BND.sum().backward()
    assert [block.num_runs for block in blocks] == [2 if index % every == 0 else 1 for index in range(6)]


def saved_bytes(mode: RecomputeMode) -> int:
    """Bytes that autograd keeps between forward and backward of one block, parameters left out."""
    block = Block(64)
    owned = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x_BND = torch.randn(4, 32, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = block(x_BND) if mode == "none" else Recompute(mode=mode)(0, block, x_BND)
    result.sum().backward()
    return sum(kept.values())


def test_full_keeps_only_the_input() -> None:
    assert saved_bytes("full") <= 4 * 32 * 64 * 4
    assert saved_bytes("none") > 4 * saved_bytes("full")


class CountProducts(TorchDispatchMode):
    """Counts the matrix products that are really computed."""

    def __init__(self) -> None:
        super().__init__()
        self.num_products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_products += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return func(*args, **(kwargs or {}))


def test_selective_does_not_repeat_matrix_products() -> None:
    runs: dict[str, int] = {}
    for mode in ("none", "selective", "full"):
        block, x_BND = Block(12), torch.randn(2, 5, 12, requires_grad=True)
        with CountProducts() as counter:
            (block(x_BND) if mode == "none" else Recompute(mode=mode)(0, block, x_BND)).sum().backward()
        runs[mode] = counter.num_products
    assert runs["none"] == runs["selective"] < runs["full"]


def test_none_leaves_the_backbone_alone() -> None:
    backbone = nn.Module()
    apply_recompute(backbone, mode="none", every=1)
    assert not hasattr(backbone, "block_runner")


def test_a_backbone_without_runner_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="without a block_runner"):
        apply_recompute(nn.Module(), mode="full", every=1)


def test_evaluation_recomputes_nothing() -> None:
    block = Counting()
    with torch.no_grad():
        Recompute(mode="full")(0, block, torch.randn(2, 5, 12))
    assert block.num_runs == 1
