"""The few collectives that host code needs; each is a no-op without a process group. Objects travel as JSON, never pickled."""

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether a process group of more than one process is up."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def broadcast_json(value: Any, *, source: int = 0) -> Any:
    """Every rank gets rank `source`'s value, which must be plain JSON. All ranks must call this."""
    if not is_distributed():
        return value
    device = _collective_device()
    payload = json.dumps(value).encode() if dist.get_rank() == source else b""
    size = torch.tensor([len(payload)], dtype=torch.int64, device=device)
    dist.broadcast(size, src=source)
    data = torch.empty(int(size.item()), dtype=torch.uint8, device=device)
    if dist.get_rank() == source:
        data.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    dist.broadcast(data, src=source)
    return json.loads(bytes(data.cpu().numpy()))


def gather_json(value: Any) -> list[Any]:
    """Every rank gets the list of all ranks' values, which must be plain JSON. All ranks must call this."""
    if not is_distributed():
        return [value]
    device = _collective_device()
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([payload.numel()], dtype=torch.int64, device=device))
    longest = max(int(size.item()) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: payload.numel()] = payload
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [json.loads(bytes(part[: int(size.item())].cpu().numpy())) for part, size in zip(parts, sizes, strict=True)]


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over the ranks, in place; the tensor is on the device of the run. All ranks must call this."""
    if is_distributed():
        dist.all_reduce(values)
    return values


def _collective_device() -> torch.device:
    # NCCL moves device memory only.
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
