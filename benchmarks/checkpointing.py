"""Saving and restoring: ours against DeepSpeed's own checkpoints and torch's distributed ones, in turn, in one run.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 benchmarks/checkpointing.py --shapes S/16 L/16 --folder /fast/disk
    OMP_NUM_THREADS=1 python benchmarks/checkpointing.py --shapes S/16

Every arm saves the same fp32 state of one engine, which is then zeroed and restored; an arm that does not bring back every bit,
of the state and of what forward reads, ends the benchmark. Every other round goes through the arms in reverse, and the medians
over the rounds are shown:

stall     seconds that training stands still
slowed    seconds that a loop of matrix products beside the save takes longer than alone, while the save is in flight
saved     until the library says that the checkpoint is there
on disk   until every file and folder of it is synced, which not every library waits for
read      into the fragments, from files that are in no cache
restored  that, until forward reads the restored weights too, which at ZeRO 1 and 2 the ranks exchange
verified  what hashing every byte of files that are in no cache takes (ours alone)
resumed   what a run that resumes takes: verified, and then restored from what that has left in the cache (ours alone)
size      of the checkpoint, in MiB
memory    that the restore takes beside the state at its peak, on the rank that takes most, in MiB of the host

torch's checkpoint gets the fragments as plain tensors under names of each rank's own: the least work it can have, though such
a checkpoint cannot be read at another world size. DeepSpeed's holds a copy of the parameters besides the master weights.
"""

import argparse
import contextlib
import ctypes
import hashlib
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load as load_dcp
from torch.distributed.checkpoint.state_dict_saver import async_save as async_save_dcp
from torch.distributed.checkpoint.state_dict_saver import save as save_dcp

from vitscale.checkpoint.discover import verify
from vitscale.checkpoint.layout import step_folder
from vitscale.checkpoint.reader import open_on_all_ranks
from vitscale.checkpoint.restore import restore_checkpoint
from vitscale.checkpoint.saver import CheckpointSaver
from vitscale.dist.agreement import on_main
from vitscale.dist.collectives import broadcast_json, gather_json
from vitscale.dist.ranks import current_ranks
from vitscale.engine.deepspeed_config import EngineConfig
from vitscale.engine.engine import Engine, build_engine
from vitscale.engine.processes import shutdown
from vitscale.models import ViTConfig
from vitscale.nn.init import initial_value
from vitscale.objectives.supervised import SupervisedConfig

_COLUMNS = ("stall", "slowed", "saved", "on disk", "read", "restored", "verified", "resumed")
_STEP = 1
_PRODUCTS = 20


@dataclass(kw_only=True)
class Turn:
    """What one save and restore took, in seconds by column, and in memory."""

    seconds: dict[str, float] = field(default_factory=dict)
    size_mib: float = 0.0
    memory_mib: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to save and restore. `save` fills in what it knows better than the clock around it."""

    save: Callable[[Path, Turn], None]
    load: Callable[[Path, Turn], None]


def main() -> None:
    args = _parse()
    torch.set_num_threads(args.threads)
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    for shape in args.shapes:
        engine = _engine(shape, args)
        arms = {name: arm for name, arm in _arms(engine).items() if name in args.arms}
        with _shared_folder(args.folder) as folder:
            turns = _measure(arms, engine=engine, folder=folder, rounds=args.rounds)
        if current_ranks().is_main:
            _report(turns, shape=shape, args=args)
        engine.close()
    shutdown()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["S/16", "L/16"], help="variants of the ViT, such as mu/16, S/16, L/16")
    parser.add_argument("--arms", nargs="+", default=["ours", "ours-background", "deepspeed", "dcp", "dcp-async"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="where to save; default: the folder for temporary files")
    return parser.parse_args()


def _engine(shape: str, args: argparse.Namespace) -> Engine:
    with torch.device("meta"):
        objective = SupervisedConfig(num_classes=1000).build(ViTConfig(variant=shape, image_size=224).build())
    config = EngineConfig(zero_stage=args.zero_stage, precision="fp32", device=args.device, micro_batch=1)
    engine = build_engine(
        objective,
        config=config,
        seed=0,
        initial=lambda name, parameter, shape: initial_value(parameter, name=name, shape=shape, seed=0),
    )
    for fragment in engine.store.held():
        if fragment.kind != "weight":
            fragment.values.uniform_()
    return engine


def _arms(engine: Engine) -> dict[str, Arm]:
    load = _load_ours(engine)
    return {
        "ours": Arm(save=_save_ours(engine, in_background=False), load=load),
        "ours-background": Arm(save=_save_ours(engine, in_background=True), load=load),
        "deepspeed": Arm(save=_save_deepspeed(engine), load=_load_deepspeed(engine)),
        "dcp": Arm(save=_save_dcp(engine), load=_load_dcp(engine)),
        "dcp-async": Arm(save=_save_dcp_async(engine), load=_load_dcp(engine)),
    }


def _save_ours(engine: Engine, *, in_background: bool) -> Callable[[Path, Turn], None]:
    def save(folder: Path, turn: Turn) -> None:
        # Its memory is allocated when a run starts, once.
        saver = CheckpointSaver(engine.store, folder=folder, in_background=in_background, check_owner=lambda: None, retention=None)
        alone = _product_seconds()
        _barrier()
        begun = time.perf_counter()
        outcomes = saver.begin(step=_STEP, state={}, config_text="")
        turn.seconds["stall"] = time.perf_counter() - begun
        turn.seconds["slowed"] = 0.0
        while not broadcast_json(bool(outcomes)):
            turn.seconds["slowed"] += _products() - alone
            parts_written = min(gather_json(saver.parts_written))  # the trainer's vote, which it takes anyway
            polled = time.perf_counter()
            outcomes = saver.poll(parts_written=parts_written)
            turn.seconds["stall"] += time.perf_counter() - polled
        saver.finish()
        turn.seconds["saved"] = time.perf_counter() - begun
        saver.close()
        assert all(outcome.error is None for outcome in outcomes), outcomes

    return save


def _load_ours(engine: Engine) -> Callable[[Path, Turn], None]:
    def load(folder: Path, turn: Turn) -> None:
        path = step_folder(folder, step=_STEP)
        begun = time.perf_counter()
        on_main(lambda: verify(path).step)
        turn.seconds["verified"] = time.perf_counter() - begun
        restore_checkpoint(open_on_all_ranks(path), store=engine.store)
        turn.seconds["resumed"] = time.perf_counter() - begun
        on_main(lambda: _forget(folder))
        _zero(engine)
        _barrier()
        with _timed_refresh(engine, turn):
            restore_checkpoint(open_on_all_ranks(path), store=engine.store)

    return load


def _save_deepspeed(engine: Engine) -> Callable[[Path, Turn], None]:
    return lambda folder, _turn: engine._engine.save_checkpoint(str(folder), tag="step")


def _load_deepspeed(engine: Engine) -> Callable[[Path, Turn], None]:
    def load(folder: Path, turn: Turn) -> None:
        begun = time.perf_counter()
        engine._engine.load_checkpoint(str(folder), tag="step")
        _barrier()
        turn.seconds["restored"] = time.perf_counter() - begun

    return load


def _save_dcp(engine: Engine) -> Callable[[Path, Turn], None]:
    return lambda folder, _turn: save_dcp(_tensors(engine), checkpoint_id=folder) and None


def _save_dcp_async(engine: Engine) -> Callable[[Path, Turn], None]:
    def save(folder: Path, turn: Turn) -> None:
        alone = _product_seconds()
        _barrier()
        begun = time.perf_counter()
        future = async_save_dcp(_tensors(engine), checkpoint_id=folder)
        assert isinstance(future, Future)
        turn.seconds["stall"] = time.perf_counter() - begun
        turn.seconds["slowed"] = 0.0
        while not future.done():
            turn.seconds["slowed"] += _products() - alone
        future.result()
        _barrier()
        turn.seconds["saved"] = time.perf_counter() - begun

    return save


def _load_dcp(engine: Engine) -> Callable[[Path, Turn], None]:
    def load(folder: Path, turn: Turn) -> None:
        with _timed_refresh(engine, turn):
            load_dcp(_tensors(engine), checkpoint_id=folder)
            engine.store.restored(optimizer_steps=engine.store.optimizer_steps())

    return load


@contextlib.contextmanager
def _timed_refresh(engine: Engine, turn: Turn) -> Iterator[None]:
    """Note when the fragments are read, which is when the store is told to refresh what forward reads, and when that is done."""
    begun = time.perf_counter()
    restored = engine.store.restored

    def refresh(*, optimizer_steps: int) -> None:
        _barrier()
        turn.seconds["read"] = time.perf_counter() - begun
        restored(optimizer_steps=optimizer_steps)
        _barrier()
        turn.seconds["restored"] = time.perf_counter() - begun

    with mock.patch.object(engine.store, "restored", refresh):
        yield


def _tensors(engine: Engine) -> dict[str, Any]:
    rank = current_ranks().rank
    return {f"{rank}|{f.name}|{f.kind}|{f.start}": f.values.detach() for f in engine.store.owned()}


def _measure(arms: dict[str, Arm], *, engine: Engine, folder: Path, rounds: int) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = {name: [] for name in arms}
    expected = _digest(engine)
    for number in range(rounds):
        for name in list(arms) if number % 2 == 0 else list(arms)[::-1]:
            turns[name].append(_turn(arms[name], engine=engine, folder=folder / name))
            assert _digest(engine) == expected, f"{name} did not bring the state back"
    return turns


def _turn(arm: Arm, *, engine: Engine, folder: Path) -> Turn:
    turn = Turn()
    _barrier()
    begun = time.perf_counter()
    arm.save(folder, turn)
    _barrier()
    turn.seconds.setdefault("saved", time.perf_counter() - begun)
    turn.seconds.setdefault("stall", turn.seconds["saved"])
    synced = time.perf_counter()
    on_main(lambda: _sync(folder))
    turn.seconds["on disk"] = turn.seconds["saved"] + time.perf_counter() - synced
    turn.size_mib = on_main(lambda: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())) / 2**20
    on_main(lambda: _forget(folder))
    _zero(engine)
    resident = _forget_peak()
    _barrier()
    arm.load(folder, turn)
    _barrier()
    turn.memory_mib = max(gather_json(_status_kib("VmHWM") - resident)) / 1024
    on_main(lambda: shutil.rmtree(folder))
    return turn


def _zero(engine: Engine) -> None:
    for values in _everything(engine):
        values.zero_()


def _everything(engine: Engine) -> Iterator[Tensor]:
    """The state, and what forward reads of it; at stage 3 that is sliced and has no values of its own to be seen."""
    yield from (fragment.values.detach() for fragment in engine.store.held())
    yield from (parameter.detach() for parameter in engine._root.parameters())


def _forget_peak() -> int:
    """Let the peak begin again at what is in use now, and say how much that is."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is allocated next
    Path("/proc/self/clear_refs").write_text("5")
    return _status_kib("VmRSS")


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def _digest(engine: Engine) -> str:
    digest = hashlib.sha256()
    for values in _everything(engine):
        digest.update(values.cpu().numpy().data)
    return digest.hexdigest()


def _product_seconds() -> float:
    """The median of what the loop of products takes with nothing beside it."""
    return statistics.median(_products() for _ in range(9))


def _products() -> float:
    matrix = torch.ones(256, 256)
    begun = time.perf_counter()
    for _ in range(_PRODUCTS):
        matrix @ matrix
    return time.perf_counter() - begun


def _sync(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        _with_descriptor(path, os.fsync)


def _forget(folder: Path) -> None:
    """Drop the pages of all files from the cache; they are on disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            _with_descriptor(path, lambda descriptor: os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED))


def _with_descriptor(path: Path, action: Callable[[int], None]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        action(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _shared_folder(parent: Path | None) -> Iterator[Path]:
    folder = Path(on_main(lambda: tempfile.mkdtemp(prefix="checkpointing-", dir=parent)))
    try:
        yield folder
    finally:
        if current_ranks().is_main:
            shutil.rmtree(folder, ignore_errors=True)


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _report(turns: dict[str, list[Turn]], *, shape: str, args: argparse.Namespace) -> None:
    ranks = current_ranks().world_size
    print(f"\nViT-{shape} at 224 px, {ranks} x {args.device}, ZeRO {args.zero_stage}, median of {args.rounds} rounds; seconds")
    print(f"{'':18s}" + "".join(f"{column:>10s}" for column in _COLUMNS) + f"{'size':>10s}{'memory':>10s}")
    for name, of_arm in turns.items():
        cells = "".join(f"{_median(of_arm, column):>10s}" for column in _COLUMNS)
        print(f"{name:18s}{cells}{of_arm[-1].size_mib:10.1f}{statistics.median(turn.memory_mib for turn in of_arm):10.1f}")


def _median(turns: list[Turn], column: str) -> str:
    values = [turn.seconds[column] for turn in turns if column in turn.seconds]
    return f"{statistics.median(values):.3f}" if values else "-"


if __name__ == "__main__":
    main()
