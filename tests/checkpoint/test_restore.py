"""Restoring: the same bits at any world size and ZeRO stage, or a refusal before anything is touched."""

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from tests.checkpoint.simulation import SHAPES, FakeStore, SimulatedRanks, Tensors, make_tensors, save_as
from tests.launcher import ROOT
from vitscale.checkpoint import restore
from vitscale.checkpoint.fragments import Fragment
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.checkpoint.restore import restore_checkpoint
from vitscale.config import CheckpointError


def _restore(path: Path, *, into: Tensors, world_size: int = 1, zero_stage: int = 1, **options: Any) -> list[FakeStore]:
    """Restore as simulated ranks into engines that hold `into`; raise rank 0's error if any rank failed."""
    stores = [FakeStore(into, rank=rank, world_size=world_size, zero_stage=zero_stage) for rank in range(world_size)]
    results = SimulatedRanks(world_size).run(lambda rank: restore_checkpoint(CheckpointReader(path), store=stores[rank], **options))
    failed = [isinstance(result, Exception) for result in results]
    assert all(failed) or not any(failed), results
    if failed[0]:
        raise results[0]
    return stores


_SHAPES = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=4
)


@hypothesis.given(
    shapes=_SHAPES, worlds=st.tuples(st.integers(1, 5), st.integers(1, 5)), stages=st.tuples(st.integers(0, 3), st.integers(0, 3))
)
@hypothesis.settings(max_examples=25, deadline=None)
def test_any_world_and_stage_restores_any_other(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple[int, ...]], worlds: tuple[int, int], stages: tuple[int, int]
) -> None:
    saved, stale = make_tensors(seed=1, shapes=shapes), make_tensors(seed=2, shapes=shapes)
    path = save_as(saved, folder=tmp_path_factory.mktemp("c"), step=9, world_size=worlds[0], zero_stage=stages[0])
    stores = _restore(path, into=stale, world_size=worlds[1], zero_stage=stages[1])
    assert all(store.matches(saved) for store in stores)
    assert {store.steps for store in stores} == {9}


@pytest.mark.dist
def test_restoring_at_another_world_size_takes_no_memory_beside_the_state(tmp_path: Path) -> None:
    tensors = make_tensors(seed=1, shapes={"a": (4096, 1024), "b": (7,)}, kinds=("weight", "exp_avg", "exp_avg_sq"))
    path = save_as(tensors, folder=tmp_path, step=1, world_size=3, zero_stage=3)
    command = [sys.executable, "-m", "tests.checkpoint.restore_memory", path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    report = json.loads(result.stdout)
    assert report["matches"]
    assert report["state_mib"] >= 48
    # One tensor has 16 MiB, and the share of a rank that wrote it 5.
    assert report["extra_mib"] < 4, report


def test_a_device_that_files_cannot_be_read_into_is_filled_by_a_few_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = make_tensors(seed=1)
    path = save_as(saved, folder=tmp_path, step=1, world_size=3, zero_stage=3)
    monkeypatch.setattr(restore, "CHUNK_ELEMENTS", 4)
    read, hosts = CheckpointReader.read_into, list[int]()

    def noting(reader: CheckpointReader, into: torch.Tensor, **where: Any) -> None:
        assert into.numel() <= 4
        hosts.append(into.data_ptr())
        read(reader, into, **where)

    class OnDevice(torch.Tensor):
        is_cpu = False  # type: ignore[assignment]

    store = FakeStore(make_tensors(seed=2), rank=0, world_size=1, zero_stage=1)
    store.pieces = [replace(piece, values=piece.values.as_subclass(OnDevice)) for piece in store.pieces]
    with mock.patch.object(CheckpointReader, "read_into", noting):
        restore_checkpoint(CheckpointReader(path), store=store)
    assert store.matches(saved)
    assert len(hosts) >= 10 * restore._READING_THREADS
    assert len(set(hosts)) <= restore._READING_THREADS, "one chunk for each thread, used again"


@pytest.mark.gpu
def test_state_on_a_gpu_is_restored(tmp_path: Path) -> None:
    saved = make_tensors(seed=1)
    store = FakeStore(make_tensors(seed=2), rank=0, world_size=1, zero_stage=1)
    store.pieces = [replace(piece, values=piece.values.cuda()) for piece in store.pieces]
    restore_checkpoint(CheckpointReader(save_as(saved, folder=tmp_path, step=1, world_size=2)), store=store)
    store.pieces = [replace(piece, values=piece.values.cpu()) for piece in store.pieces]
    assert store.matches(saved)


def test_a_moving_average_that_was_not_kept_is_refused_or_started_from_the_weights(tmp_path: Path) -> None:
    saved = make_tensors(seed=1, kinds=("weight", "exp_avg", "exp_avg_sq"))
    path = save_as(saved, folder=tmp_path, step=1, world_size=2)
    with pytest.raises(CheckpointError, match="holds no ema, which this run keeps; it has exp_avg, exp_avg_sq, weight"):
        _restore(path, into=make_tensors(seed=2), world_size=2)
    stores = _restore(path, into=make_tensors(seed=2), world_size=2, missing_ema="copy_weights")
    expected = {**saved, **{(name, "ema"): saved[name, "weight"] for name in SHAPES}}
    assert all(store.matches(expected) for store in stores)  # type: ignore[arg-type]


def test_missing_moments_are_always_refused(tmp_path: Path) -> None:
    path = save_as(make_tensors(seed=1, kinds=("weight", "ema")), folder=tmp_path, step=1)
    with pytest.raises(CheckpointError, match="holds no exp_avg or exp_avg_sq"):
        _restore(path, into=make_tensors(seed=2), missing_ema="copy_weights")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.w": (2, 6)}, r"head\.w has shape \(2, 3, 2\) in the checkpoint and \(2, 6\) in the model"),
        ({"head.new": (4,)}, r"model: head\.new is not in the checkpoint\. Go on with"),
        ({"backbone.b": None}, r"does not fit this model, which lacks backbone\.b"),
        ({f"x{i}": (1,) for i in range(9)}, r"x4 is not in the checkpoint; and 4 more\. Go on with"),
    ],
)
@pytest.mark.parametrize("world_size", [1, 3])
def test_another_model_is_refused_before_anything_is_written(
    tmp_path: Path, world_size: int, change: dict[str, tuple[int, ...] | None], message: str
) -> None:
    path = save_as(make_tensors(seed=1), folder=tmp_path, step=1)
    shapes = {name: shape for name, shape in (SHAPES | change).items() if shape is not None}
    model = make_tensors(seed=2, shapes=shapes)
    with (
        mock.patch.object(FakeStore, "restored") as restored,
        mock.patch.object(CheckpointReader, "read_into") as read,
        pytest.raises(CheckpointError, match=message),
    ):
        _restore(path, into=model, world_size=world_size, zero_stage=3)
    restored.assert_not_called()
    read.assert_not_called()


def test_one_rank_that_cannot_read_fails_the_restore_on_all(tmp_path: Path) -> None:
    path = save_as(make_tensors(seed=1), folder=tmp_path, step=1)

    def held(store: FakeStore) -> Iterator[Fragment]:
        for piece in store.pieces:
            wrong = Fragment(name=piece.name, kind=piece.kind, shape=(99,), start=0, values=piece.values)
            yield wrong if store.rank == 1 and piece.name == "backbone.b" else piece

    with mock.patch.object(FakeStore, "held", held), pytest.raises(CheckpointError, match=r"backbone\.b has shape \(7,\)"):
        _restore(path, into=make_tensors(seed=2), world_size=3)


def test_a_file_that_ends_too_early_after_all_fails_the_restore_on_all(tmp_path: Path) -> None:
    path = save_as(make_tensors(seed=1), folder=tmp_path, step=1, world_size=2)
    stores = [FakeStore(make_tensors(seed=2), rank=rank, world_size=2, zero_stage=1) for rank in range(2)]
    readers = [CheckpointReader(path) for _ in stores]
    with (path / "rank-00001.safetensors").open("r+b") as file:
        file.truncate((path / "rank-00001.safetensors").stat().st_size - 2)
    results = SimulatedRanks(2).run(lambda rank: restore_checkpoint(readers[rank], store=stores[rank]))
    assert all(isinstance(result, CheckpointError) for result in results), results
    assert {str(result).partition(" ends within ")[0] for result in results} == {f"{path / 'rank-00001.safetensors'}:"}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C means what it does at a terminal: the background processes of a shell are started ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("error", [CheckpointError, KeyboardInterrupt])
def test_a_restore_that_fails_or_is_interrupted_reads_no_further(tmp_path: Path, error: type[BaseException]) -> None:
    tensors = make_tensors(seed=1, shapes={"a": (400,)})
    path, num_reads = save_as(tensors, folder=tmp_path, step=1), itertools.count(1)

    def read(_reader: CheckpointReader, _into: torch.Tensor, **_where: Any) -> None:
        if next(num_reads) == 5:
            if error is CheckpointError:
                raise CheckpointError("the disk is gone")
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.002)

    store = FakeStore(tensors, rank=0, world_size=1, zero_stage=1)
    with mock.patch.object(CheckpointReader, "read_into", read), mock.patch.object(restore, "CHUNK_ELEMENTS", 1), pytest.raises(error):
        restore_checkpoint(CheckpointReader(path), store=store)
    assert next(num_reads) < 800, "of 1600"


def test_values_are_written_into_live_memory(tmp_path: Path) -> None:
    saved = make_tensors(seed=1)
    path = save_as(saved, folder=tmp_path, step=1)
    live = torch.nn.Parameter(torch.zeros(15))
    store = FakeStore(make_tensors(seed=2), rank=0, world_size=1, zero_stage=0)
    store.pieces = [
        Fragment(
            name=p.name,
            kind=p.kind,
            shape=p.shape,
            start=p.start,
            values=live if (p.name, p.kind) == ("backbone.a", "weight") else p.values,
        )
        for p in store.pieces
    ]
    restore_checkpoint(CheckpointReader(path), store=store)
    assert torch.equal(live.detach().view(3, 5), saved["backbone.a", "weight"])
