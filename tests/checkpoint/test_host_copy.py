"""The copy in host memory: the bits of the moment, in memory that is allocated once."""

import contextlib
from dataclasses import replace
from unittest import mock

import pytest
import torch

from tests.checkpoint.simulation import FakeStore, make_tensors
from vitscale.checkpoint.fragments import Fragment
from vitscale.checkpoint.host_copy import HostCopy, live_values, size_in_bytes
from vitscale.config import CheckpointError


def _store(device: str = "cpu") -> FakeStore:
    store = FakeStore(make_tensors(seed=1), rank=0, world_size=2, zero_stage=1)
    store.pieces = [Fragment(name=p.name, kind=p.kind, shape=p.shape, start=p.start, values=p.values.to(device)) for p in store.pieces]
    return store


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def store(request: pytest.FixtureRequest) -> FakeStore:
    return _store(request.param)


def test_the_copies_stay_when_training_goes_on(store: FakeStore) -> None:
    before = [piece.values.cpu().clone() for piece in store.pieces]
    host = HostCopy(store.owned())
    copies = host.take(store.owned())
    for piece in store.pieces:
        piece.values.zero_()
    assert [(c.name, c.kind, c.shape, c.start) for c in copies] == [(p.name, p.kind, p.shape, p.start) for p in store.pieces]
    assert all(torch.equal(copy.values, value) for copy, value in zip(copies, before, strict=True))
    assert all(copy.values.device.type == "cpu" for copy in copies)
    host.close()


def test_the_memory_is_allocated_once(store: FakeStore) -> None:
    host = HostCopy(store.owned())
    first = [copy.values.data_ptr() for copy in host.take(store.owned())]
    store.pieces[0].values.fill_(7.0)
    second = host.take(store.owned())
    assert [copy.values.data_ptr() for copy in second] == first
    assert second[0].values.unique().tolist() == [7.0]
    assert second[0].values.untyped_storage().nbytes() == size_in_bytes(store.owned())
    host.close()


def test_parameters_that_require_gradients_are_copied_without_a_graph() -> None:
    values = torch.nn.Parameter(torch.ones(3))
    fragment = Fragment(name="a", kind="weight", shape=(3,), start=0, values=values)
    (copy,) = HostCopy([fragment]).take([fragment])
    assert not copy.values.requires_grad


def test_another_layout_is_our_mistake() -> None:
    store = _store()
    with pytest.raises(AssertionError, match="another layout"):
        HostCopy(store.owned()).take(store.pieces[:-1])


def test_a_rank_that_owns_nothing_needs_nothing() -> None:
    host = HostCopy([])
    assert host.take([]) == []
    assert size_in_bytes([]) == 0
    host.close()


def test_live_values_are_the_values_themselves(store: FakeStore) -> None:
    assert [f.values.data_ptr() for f in live_values(store.owned())] == [p.values.data_ptr() for p in store.pieces]


def test_memory_that_is_not_there_is_one_clear_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store()
    monkeypatch.setattr(torch, "empty", mock.Mock(side_effect=RuntimeError("can't allocate memory")))
    with pytest.raises(CheckpointError, match=r"0\.0 GiB of host memory in each process.*set checkpoint\.in_background=false"):
        HostCopy(store.owned())


def test_pages_are_locked_for_a_gpu_and_unlocked_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    # What CUDA is asked for, on a machine without it.
    cudart = mock.Mock()
    cudart.cudaHostRegister.return_value = cudart.cudaHostUnregister.return_value = 0
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "Stream", mock.Mock())
    monkeypatch.setattr(torch.cuda, "current_stream", mock.Mock())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())

    class OnGpu(torch.Tensor):
        is_cuda = True  # type: ignore[assignment]

    fragments = [replace(fragment, values=fragment.values.as_subclass(OnGpu)) for fragment in _store().owned()]
    host = HostCopy(fragments)
    copies = host.take(fragments)
    address = copies[0].values.data_ptr()
    cudart.cudaHostRegister.assert_called_once_with(address, size_in_bytes(fragments), 0)
    assert all(torch.equal(copy.values, fragment.values) for copy, fragment in zip(copies, fragments, strict=True))
    torch.cuda.Stream.return_value.synchronize.assert_called_once_with()  # type: ignore[attr-defined]
    host.close()
    cudart.cudaHostUnregister.assert_called_once_with(address)
    cudart.cudaHostRegister.return_value = 2
    with pytest.raises(CheckpointError, match=r"cannot be page-locked \(CUDA error 2\)"):
        HostCopy(fragments)
