"""The process group a run lives in: made for one process, for torchrun's, or taken over from whoever made it already."""

import atexit
import logging
import os
import resource
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

from vitscale.config import ConfigError
from vitscale.dist.ranks import Ranks, current_ranks

_ACCELERATORS = {"cpu": CPU_Accelerator, "cuda": CUDA_Accelerator}
_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}

_PATIENCE = timedelta(days=1)

_owned = False  # whether the process group is ours to destroy


def init_process_group(device: str) -> Ranks:
    """Join the process group for `device` ("cpu": gloo, "cuda": nccl) and return this process's place in it.

    A group that exists already (Ray Train makes one) is used as it is; torchrun's environment makes one of many
    processes; without either this process is a group of its own. Calling it again changes nothing. On cuda the device
    of the local rank becomes the current one. Raises `ConfigError` when there is no such device.
    """
    global _owned
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("parallel.device: cuda was asked for, but torch sees no GPU here; use auto or cpu")
    ranks = current_ranks()
    # DeepSpeed reads it for the device even when the group is not its own.
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))
    if device == "cuda":
        torch.cuda.set_device(ranks.local_rank)
    _configure_threads(device)
    if not dist.is_initialized():
        _make_group(device)
        _owned = True
        atexit.register(_leave)
    _configure_deepspeed(device)
    return current_ranks()


def wait_patiently() -> None:
    """Let collectives of the process group take a day from now on. Every rank calls it once a watchdog looks after it.

    torch ends the processes that wait for another one for 10 minutes over NCCL, for 30 over gloo. What one rank does for all may
    take longer, as to download a large checkpoint; whether it is still at it, its signs of life tell better than the time.
    """
    group = dist.group.WORLD
    assert group is not None, "there is no process group"
    group.set_timeout(_PATIENCE)


def shutdown() -> None:
    """Leave the process group of a single process, if `init_process_group` made it. Engines must be closed before.

    A group of many stays until the processes end, and the next run in them takes it over: a second rendezvous at the
    launcher's address can meet what is left of the first and wait for ever.
    """
    if _owned and dist.is_initialized() and dist.get_world_size() == 1:
        _leave()


def _leave() -> None:
    global _owned
    if _owned and dist.is_initialized():
        # Through DeepSpeed, which keeps groups of its own that would outlive the torch ones.
        deepspeed.comm.destroy_process_group()
    _owned = False


def _make_group(device: str) -> None:
    if "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ:
        dist.init_process_group(_BACKENDS[device])
    else:
        # A store in memory: no port that another run on this machine could hold.
        dist.init_process_group(_BACKENDS[device], store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


def _configure_threads(device: str) -> None:
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device == "cpu" and local_ranks > 1 and "OMP_NUM_THREADS" not in os.environ:
        # Ranks that each use every core spend their time spinning for one another.
        torch.set_num_threads(max(1, _num_cores() // local_ranks))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _configure_deepspeed(device: str) -> None:
    _configure_logging()
    if get_accelerator().device_name() != device:
        set_accelerator(_ACCELERATORS[device]())
    os.environ["DS_ACCELERATOR"] = device
    # Else DeepSpeed compiles a shared-memory collective at start (a minute and more, or no compiler); training never uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=_BACKENDS[device], verbose=False)


def _configure_logging() -> None:
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:  # not its subclasses, which write elsewhere
            # stdout belongs to what the user asked for. Not setStream: it flushes the old stream, which may be closed.
            handler.stream = sys.stderr
            # Its warnings are in each rank's log file; what they mean for the run is reported by us.
            handler.setLevel(logging.ERROR)
    # torch renames two collectives that DeepSpeed 0.19 still calls by the old name, at each call.
    pattern = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"
    warnings.filterwarnings("ignore", message=pattern, category=FutureWarning)


def peak_resident_bytes() -> int:
    """The most memory this process has had resident. Not getrusage's figure, which begins at that of the parent process."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
