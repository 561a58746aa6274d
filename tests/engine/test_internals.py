"""What we know of DeepSpeed's inside still holds: these fail first when its version changes."""

import gc
import itertools
import weakref

import deepspeed
import pytest
import torch
from deepspeed.runtime.zero import parameter_offload

from tests.engine.tiny import TinyObjective, batch, meta_objective, micro_batches, tiny_engine
from vitscale.engine import deepspeed_config, internals


def test_another_version_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    internals.check_version()
    monkeypatch.setattr(deepspeed, "__version__", "0.20.0")
    with pytest.raises(AssertionError, match=r"deepspeed 0\.20\.0 is installed.*deepspeed==0\.19\.\*"):
        internals.check_version()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_shards_name_every_element_once(stage: int) -> None:
    engine = tiny_engine(stage=stage)
    names = {parameter: name for name, parameter in engine._root.objective.named_parameters()}
    shards = internals.master_shards(engine._engine, names=names, zero_stage=stage)
    expected = {name: parameter.numel() for name, parameter in TinyObjective().named_parameters()}
    assert {piece.name: piece.count for shard in shards for piece in shard.pieces} == expected
    for shard in shards:
        ends = [(piece.offset, piece.offset + piece.count) for piece in shard.pieces]
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(ends)), "pieces overlap"
        assert ends[-1][1] <= shard.values.numel()
    engine.close()


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (3, "fp32"), (3, "bf16")])
@pytest.mark.parametrize("threshold", [0, 10_000])
def test_forward_sees_masters_written_behind_its_back(stage: int, precision: str, threshold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = deepspeed_config._Limits(reduce=10_000, prefetch=10_000, live=10_000, persistent=threshold)
    monkeypatch.setitem(deepspeed_config._LIMITS, "cpu", limits)
    engine, other = (tiny_engine(stage=stage, precision=precision, seed=seed) for seed in (0, 1))
    engine.train_step(micro_batches(0), step=0, lr=1e-2)
    engine.predict(batch(0))  # leaves parameters gathered at stage 3
    for mine, theirs in zip(engine.store.held(), other.store.held(), strict=True):
        mine.values.copy_(theirs.values)
    engine.store.restored(optimizer_steps=0)
    assert torch.equal(engine.predict(batch(0)), other.predict(batch(0)))
    engine.close()
    other.close()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_closed_engine_frees_its_weights(stage: int) -> None:
    objective, stack = meta_objective(), list(parameter_offload.FWD_MODULE_STACK)
    engine = tiny_engine(stage=stage, objective=objective, ema_decay=0.5)
    engine.train_step(micro_batches(0), step=0, lr=1e-2)
    engine.predict(batch(0))
    state = [weakref.ref(fragment.values._base) for fragment in engine.store.held()]
    assert all(reference() is not None for reference in state)
    engine.close()
    del engine
    gc.collect()
    assert all(reference() is None for reference in state), "masters, moments and averages"
    assert sum(parameter.untyped_storage().nbytes() for parameter in objective.parameters()) == 0
    assert stack == parameter_offload.FWD_MODULE_STACK
