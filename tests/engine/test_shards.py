"""The engine's state as fragments: complete, restorable into any stage and precision, and exact."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.tiny import TinyObjective, micro_batches, tiny_engine
from tests.launcher import run_ranks
from vitscale.checkpoint.fragments import ShardStore
from vitscale.engine.internals import MasterShard, Piece
from vitscale.engine.shards import EngineStore

FP32 = [(stage, "fp32") for stage in range(4)]
BF16 = [(stage, "bf16") for stage in (1, 2, 3)]


@pytest.mark.parametrize(("stage", "precision"), FP32 + BF16)
def test_one_rank_owns_everything(stage: int, precision: str) -> None:
    engine = tiny_engine(stage=stage, precision=precision, ema_decay=0.5)
    store: ShardStore = engine.store
    shapes = {name: tuple(parameter.shape) for name, parameter in TinyObjective().named_parameters()}
    owned = {(f.name, f.kind): f for f in store.owned()}
    assert owned.keys() == {(name, kind) for name in shapes for kind in ("weight", "exp_avg", "exp_avg_sq", "ema")}
    for (name, _), fragment in owned.items():
        assert fragment.shape == shapes[name]
        assert (fragment.start, fragment.values.numel()) == (0, math.prod(shapes[name]))
        assert fragment.values.dtype == torch.float32
        assert fragment.values.ndim == 1
    engine.close()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_state_exists_before_the_first_step_and_counts_steps(stage: int) -> None:
    engine = tiny_engine(stage=stage)
    assert engine.store.optimizer_steps() == 0
    assert all(bool((f.values == 0).all()) for f in engine.store.held() if f.kind.startswith("exp"))
    for step in range(3):
        engine.train_step(micro_batches(step), step=step, lr=1e-2)
    assert engine.store.optimizer_steps() == 3
    assert all(bool((f.values != 0).any()) for f in engine.store.held() if f.kind == "exp_avg")
    engine.close()


@pytest.mark.parametrize(("stage", "precision"), FP32 + BF16)
def test_a_used_engine_of_another_seed_continues_bit_for_bit(stage: int, precision: str) -> None:
    source = tiny_engine(stage=stage, precision=precision, ema_decay=0.5)
    for step in range(2):
        source.train_step(micro_batches(step), step=step, lr=1e-2)
    state = {(f.name, f.kind): f.values.clone() for f in source.store.held()}
    steps = source.store.optimizer_steps()
    expected = [source.train_step(micro_batches(step), step=step, lr=1e-2).loss.item() for step in (2, 3)]
    source.close()
    target = tiny_engine(stage=stage, precision=precision, ema_decay=0.5, seed=1)
    target.train_step(micro_batches(9), step=9, lr=1e-2)
    differing = {key for key, value in state.items() if not torch.equal(value, _held(target)[key])}
    assert differing == state.keys(), "the negative control: nothing was equal before"
    for fragment in target.store.held():
        fragment.values.copy_(state[fragment.name, fragment.kind])
    target.store.restored(optimizer_steps=steps)
    continued = [target.train_step(micro_batches(step), step=step, lr=1e-2).loss.item() for step in (2, 3)]
    target.close()
    assert continued == expected


def _held(engine: Any) -> dict[tuple[str, str], torch.Tensor]:
    return {(f.name, f.kind): f.values for f in engine.store.held()}


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_replicated_state_is_written_in_even_shares_of_few_pieces(world_size: int) -> None:
    values = torch.arange(10.0)
    pieces = [Piece(name="w", shape=(2, 5), start=0, count=10, offset=0), Piece(name="b", shape=(), start=0, count=1, offset=0)]
    written: dict[tuple[str, str], list[float]] = {}
    counts: list[int] = []
    num_pieces = 0
    for rank in range(world_size):
        parameters = [torch.nn.Parameter(values[: piece.count].clone().view(piece.shape)) for piece in pieces]
        store = EngineStore(
            zero_stage=0,
            rank=rank,
            world_size=world_size,
            shards=[
                MasterShard(values=parameter.data.view(-1), state_key=parameter, pieces=(piece,))
                for parameter, piece in zip(parameters, pieces, strict=True)
            ],
            averages=None,
            optimizer=torch.optim.AdamW(parameters),
            refresh=lambda: None,
        )
        assert [f.values.numel() for f in store.held()] == [10, 10, 10, 1, 1, 1]
        for fragment in store.owned():
            so_far = written.setdefault((fragment.name, fragment.kind), [])
            assert fragment.start == len(so_far)
            so_far += fragment.values.tolist()
        counts.append(sum(f.values.numel() for f in store.owned()))
        num_pieces += len(list(store.owned()))
    assert written.pop(("w", "weight")) == values.tolist()
    assert written.pop(("b", "weight")) == [0.0]
    assert sorted(map(len, written.values())) == [1, 1, 10, 10], "both moments of both"
    assert max(counts) - min(counts) <= 1
    assert num_pieces <= 6 + world_size - 1, "a piece for each tensor, and one more for each border between ranks"


@pytest.fixture(scope="module")
def ranks() -> dict[str, Any]:
    report: dict[str, Any] = run_ranks(Path(__file__).with_name("ranks_round_trip.py"), timeout_s=280)[0]
    return report


@pytest.mark.dist
def test_two_ranks_restore_into_every_stage_and_precision(ranks: dict[str, Any]) -> None:
    settings = {f"{stage} {precision}" for stage, precision in FP32 + BF16}
    assert {case.split(" -> ")[0] for case in ranks["whole"]} == settings
    assert {case.split(" -> ")[1] for case in ranks["whole"]} == settings
    crossings = {("0 fp32", "3 bf16"), ("3 bf16", "0 fp32"), ("0 fp32", "3 fp32"), ("3 fp32", "0 fp32"), ("1 bf16", "3 bf16")}
    assert crossings | {(setting, setting) for setting in settings} <= {tuple(case.split(" -> ")) for case in ranks["whole"]}
    cases = [item for group in ("whole", "sharded", "accumulated") for item in ranks[group].items()]
    for case, result in cases:
        assert result["equal"], f"{case}: masters, moments or averages differ"
        assert result["steps"] == 5, case
        _losses_agree(case, result)


def _losses_agree(case: str, result: dict[str, Any]) -> None:
    source, target = case.split(" -> ")
    difference = max(abs(a - b) for a, b in zip(result["losses"], result["continued"], strict=True))
    if source == target:
        assert difference == 0.0, case
    elif source.split()[1] == target.split()[1]:
        assert difference < 1e-6, case
    else:
        assert difference < 5e-3, case
