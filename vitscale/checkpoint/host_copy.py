"""A copy of one rank's state in host memory that stays as it is while training goes on."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vitscale.checkpoint.fragments import ELEMENT_BYTES, Fragment
from vitscale.config import CheckpointError


class HostCopy:
    """Host memory for one rank's fragments, allocated once and filled anew for every save.

    Costs 4 bytes an element: what the rank owns of the weights, both moments and the moving average. Where the state lies on
    a GPU the memory is page-locked, so that the copy runs at the speed of the bus.
    """

    def __init__(self, fragments: Iterable[Fragment]) -> None:
        """Allocates for `fragments`; every later `take` is of fragments of the same sizes. Raises `CheckpointError` where this
        host has not that much memory, as far as it says so."""
        fragments = list(fragments)
        self._sizes = [fragment.values.numel() for fragment in fragments]
        # Filled, so that the first save need not wait for the pages, and memory that is not there is missed at the start.
        self._memory = _allocate(sum(self._sizes)).fill_(0.0)
        self._device = next((fragment.values.device for fragment in fragments if fragment.values.is_cuda), None)
        self._stream = None
        if self._device is not None:
            _lock_pages(self._memory)
            self._stream = torch.cuda.Stream(self._device)

    def take(self, fragments: Iterable[Fragment]) -> list[Fragment]:
        """Copy the values of `fragments`, which may change once this returns; the copies are valid until the next call."""
        fragments = list(fragments)
        assert [fragment.values.numel() for fragment in fragments] == self._sizes, "the state has another layout than before"
        places = self._memory.split(self._sizes)
        if self._stream is None:
            _copy(fragments, places)
        else:
            # Behind what training has queued up, and beside nothing: training waits below.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                _copy(fragments, places)
            self._stream.synchronize()
        return [replace(fragment, values=place) for fragment, place in zip(fragments, places, strict=True)]

    def close(self) -> None:
        """Give the memory back. No copy may be in use."""
        if self._stream is not None:
            _unlock_pages(self._memory)
        self._memory = torch.empty(0)
        self._sizes = []


def live_values(fragments: Iterable[Fragment]) -> list[Fragment]:
    """The fragments themselves, when the device has computed them: for a save that training waits for."""
    fragments = list(fragments)
    for device in {fragment.values.device for fragment in fragments if fragment.values.is_cuda}:
        # The thread that writes them has a stream of its own.
        torch.cuda.current_stream(device).synchronize()
    return fragments


def size_in_bytes(fragments: Iterable[Fragment]) -> int:
    """What the fragments take in a file, or in a `HostCopy`."""
    return sum(fragment.values.numel() for fragment in fragments) * ELEMENT_BYTES


@torch.no_grad()
def _copy(fragments: Sequence[Fragment], places: Sequence[Tensor]) -> None:
    for fragment, place in zip(fragments, places, strict=True):
        place.copy_(fragment.values, non_blocking=True)


def _allocate(count: int) -> Tensor:
    try:
        return torch.empty(count, dtype=torch.float32, device="cpu")
    except RuntimeError as error:
        raise _too_large(count * ELEMENT_BYTES, why="there is not that much") from error


def _lock_pages(memory: Tensor) -> None:
    # Not pin_memory=True: torch rounds that up to the next power of two.
    if memory.numel():
        code = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
        if code != 0:
            raise _too_large(memory.nbytes, why=f"it cannot be page-locked (CUDA error {code})")


def _unlock_pages(memory: Tensor) -> None:
    if memory.numel():
        code = int(torch.cuda.cudart().cudaHostUnregister(memory.data_ptr()))
        assert code == 0, f"CUDA error {code}"


def _too_large(size: int, *, why: str) -> CheckpointError:
    return CheckpointError(
        f"saving in the background takes {size / 2**30:.1f} GiB of host memory in each process, and {why}; set"
        " checkpoint.in_background=false, or train on more processes with a ZeRO stage above 0"
    )
