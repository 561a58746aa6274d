"""Step results: means over steps, each loss kept, nothing left behind."""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.train.tiny_run import losses, tiny_config
from vitscale import api
from vitscale.engine.engine import Engine, StepMetrics
from vitscale.train.pending import PendingSteps

_TORCH = str(Path(torch.__file__).parent)


def metrics(loss: float, top1: float, norm: float) -> StepMetrics:
    return StepMetrics(loss=torch.tensor(loss), metrics={"train_top1": torch.tensor(top1)}, grad_norm=torch.tensor(norm))


def test_collect_averages_and_numbers_the_steps() -> None:
    pending = PendingSteps(steps_done=10)
    pending.add(metrics(1.0, 0.5, 2.0))
    pending.add(metrics(3.0, 0.7, 4.0))
    summary = pending.collect()
    assert summary.first_step == 11
    assert summary.losses == (1.0, 3.0)
    assert summary.grad_norms == (2.0, 4.0)
    assert summary.values["loss"] == 2.0
    assert summary.values["loss_max"] == 3.0
    assert summary.values["grad_norm"] == 3.0
    assert abs(summary.values["train_top1"] - 0.6) < 1e-6
    pending.add(metrics(5.0, 0.5, 2.0))
    assert pending.collect().first_step == 13


def test_means_leave_out_what_was_skipped() -> None:
    pending = PendingSteps(steps_done=0)
    pending.add(metrics(1.0, 0.5, 2.0))
    pending.add(metrics(math.nan, math.nan, math.inf))
    pending.add(metrics(3.0, 0.5, 4.0))
    summary = pending.collect()
    assert summary.values == {"loss": 2.0, "loss_max": 3.0, "grad_norm": 3.0, "train_top1": 0.5}
    assert math.isnan(summary.losses[1])
    assert summary.grad_norms == (2.0, math.inf, 4.0)
    pending.add(metrics(math.nan, math.nan, math.inf))
    assert pending.collect().values == {}


class Reads(TorchDispatchMode):
    """Counts what would wait for a GPU, by where the run is: floating-point values that become Python's, numpy's or a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.place = "start"
        self.found: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and not args[0].dtype.is_floating_point and args[0].dtype != torch.bool:
            return func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.nonzero.default):
            self.note()
        return func(*args, **(kwargs or {}))

    def note(self) -> None:
        reader: FrameType | None = sys._getframe()
        while reader is not None and (reader.f_code.co_filename == __file__ or reader.f_code.co_filename.startswith(_TORCH)):
            reader = reader.f_back
        assert reader is not None
        self.found[self.place, reader.f_code.co_name] += 1

    @contextmanager
    def at(self, place: str, *, then: str) -> Iterator[None]:
        self.place = place
        try:
            yield
        finally:
            self.place = then

    def listening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A way to read that torch does not dispatch on the CPU."""

        def read(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            if tensor.dtype.is_floating_point:
                self.note()
            return real(tensor, *arguments, **options)

        return read


@pytest.mark.parametrize(("zero_stage", "readers"), [(0, set()), (1, {"is_invalid_grad_norm"})])
def test_values_leave_the_device_in_steps_that_report_and_in_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero_stage: int, readers: set[str]
) -> None:
    """DeepSpeed itself looks at the gradient's norm in every step from stage 1 on; neither the engine nor the loop adds to that."""
    reads = Reads()
    train_step, collect = Engine.train_step, PendingSteps.collect

    def watched_step(engine: Engine, *arguments: Any, **options: Any) -> StepMetrics:
        with reads.at("step", then="between"):
            return train_step(engine, *arguments, **options)

    def watched_collect(pending: PendingSteps) -> Any:
        with reads.at("collect", then="report"):
            return collect(pending)

    monkeypatch.setattr(Engine, "train_step", watched_step)
    monkeypatch.setattr(PendingSteps, "collect", watched_collect)
    for name in ("tolist", "numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, reads.listening(getattr(torch.Tensor, name)))
    config = tiny_config(tmp_path, f"parallel.zero_stage={zero_stage}", "train.log_every_steps=3", "checkpoint.every_steps=100")
    with reads:
        api.train(config)
    assert sorted(losses(config.run_dir)) == [3, 6]
    places = {place for place, _ in reads.found}
    assert "collect" in places, "the counting works"
    assert "between" not in places, reads.found
    assert {reader for place, reader in reads.found if place == "step"} == readers
