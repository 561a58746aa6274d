"""What the data path costs beside webdataset, Pillow and torchvision: reading, decoding and cropping, workers, the first batch.

    PYTHONPATH=. python benchmarks/photo_tiles.py PHOTOS /tmp/tiles
    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/streaming.py /tmp/tiles [--rounds 5] [--only reading,small]

The arms of a comparison alternate in one process, and what counts is CPU time (threads included), so that neither a busy machine
nor its changing clock favours one of them; the median of the rounds is printed. Scaling over workers and the time to the first
batch are wall times: run them on an idle machine.

The baseline is what ImageNet training scripts do: webdataset, Pillow's decoder, torchvision's RandomResizedCrop and flip, then
a normalised float32 tensor. Ours ends with the uint8 batch that the device normalises.
"""

import argparse
import gc
import importlib
import importlib.metadata
import io
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import webdataset
from torch.utils.data import IterableDataset

from vitscale.config import ConfigError
from vitscale.data.config import ShardsConfig
from vitscale.data.demand import Demand
from vitscale.data.images.transforms import AugmentConfig, TrainTransform
from vitscale.data.images.turbojpeg import require_turbojpeg
from vitscale.data.lanes import LaneReader, rank_slice
from vitscale.data.loader import Share, TrainLoader, train_loader
from vitscale.data.processes import start_fork_server
from vitscale.data.reader import SampleReader
from vitscale.data.source import ShardData, open_shards
from vitscale.data.types import JpegDecoder, StagedTransform
from vitscale.data.worker import Part

BATCH = 64
IMAGE_SIZE = 224
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
LANES = 8
ORDERS = {"block 16, window 4": (16, 4), "block 64, window 4": (64, 4)}
SMALL_WINDOWS = {"small": (16, 4), "large": (4, 2), "large_fine": (4, 2)}
"""Block and window by corpus: few enough samples that what is read ahead when an arm ends weighs nothing."""
WORKER_BATCHES = 40


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to do the work; `run` goes over about `num_images` and returns how many they were."""

    name: str
    run: Callable[[int], int]


def main() -> None:
    """Measure what was asked for and print a table of each."""
    benchmarks: Mapping[str, Callable[[Path, int], None]] = {
        "reading": reading,
        "small": partial(end_to_end, corpus="small", num_images=1920),
        "large": partial(end_to_end, corpus="large", num_images=384),
        "large_fine": partial(end_to_end, corpus="large_fine", num_images=384),
        "workers": workers,
        "start": start,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path, help="the folder that benchmarks/photo_tiles.py wrote")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(benchmarks), help="which of them, with commas between")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    gc.freeze()  # as in a loader process: no collection goes through what was imported, in either arm
    for name in arguments.only.split(","):
        benchmarks[name](arguments.tiles, arguments.rounds)


def reading(tiles: Path, rounds: int) -> None:
    """Samples out of shards, without decoding."""
    shards = tiles / "small" / "shards"
    arms = [Arm(name="webdataset", run=partial(_read_with_webdataset, shards))]
    arms += [
        Arm(name=f"ours, {LANES} lanes, {name}", run=partial(_read_with_lanes, shards, block=block, window=window))
        for name, (block, window) in ORDERS.items()
    ]
    arms.append(Arm(name="ours, file order", run=partial(_read_in_order, shards)))
    _compare("Reading without decoding", arms, num_images=10 * 2944, rounds=rounds)


def end_to_end(tiles: Path, rounds: int, *, corpus: str, num_images: int) -> None:
    """Reading, decoding, random resized crop to 224, flip, batch."""
    shards = tiles / corpus / "shards"
    arms = [Arm(name="webdataset + Pillow + torchvision float", run=partial(_baseline, shards))]
    arms += [Arm(name=f"ours, {decoder}", run=partial(_ours, shards, decoder=decoder)) for decoder in _decoders()]
    _compare(f"Read, decode, crop, flip, batch: {corpus} images", arms, num_images=num_images, rounds=rounds)


def workers(tiles: Path, rounds: int) -> None:
    """Images per second of wall time by loader processes, and the CPU time behind it, which a busy machine changes little.

    On as many idle cores as there are processes, two make batches in half the time if the CPU time per image does not grow.
    """
    shards = tiles / "small" / "shards"
    for decoder in _decoders():
        runs: dict[int, list[LoaderRun]] = {1: [], 2: []}
        for _ in range(rounds):
            for num_workers, found in runs.items():
                found.append(_run_loader(shards, decoder=decoder, num_workers=num_workers))
        print(f"\nLoader processes, {decoder}, median of {rounds} alternating rounds")
        for num_workers, found in runs.items():
            rate, worker, here = (
                statistics.median(getattr(run, name) for run in found) for name in ("images_per_second", "worker_ms", "here_ms")
            )
            print(f"  {num_workers}: {rate:6.0f} images/s; CPU per image {worker:.2f} ms in the processes, {here:.3f} ms in training's own")
        for name, kind in (("wall time", "images_per_second"), ("CPU time allows", "possible")):
            ratios = [getattr(two, kind) / getattr(one, kind) for one, two in zip(*runs.values(), strict=True)]
            print(f"  two are {statistics.median(ratios):.2f}x one by {name} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


@dataclass(frozen=True, kw_only=True)
class LoaderRun:
    """What loading took; `possible` is the rate that the processes reach on a core each."""

    images_per_second: float
    worker_ms: float
    here_ms: float
    possible: float


def start(tiles: Path, rounds: int) -> None:
    """From opening the data set to the first batch, one loader process, the shards out of the page cache, a fresh process each.

    A run lets the fork server import torch while it builds the model; what that takes is measured apart.
    """
    shards = tiles / "small" / "shards"
    command = [sys.executable, "-c", f"from benchmarks.streaming import print_start; print_start({str(shards)!r})"]
    found: list[list[float]] = []
    for _ in range(rounds):
        _drop_from_page_cache(shards)
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append([float(seconds) for seconds in output.split()])
    for name, seconds in zip(
        ("Fork server (beside the building of the model)", "First batch from cold"), zip(*found, strict=True), strict=True
    ):
        print(f"\n{name}: median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s")


def print_start(shards: str) -> None:
    """The measured part of `start`, in its own process."""
    torch.set_num_threads(1)
    times = [time.monotonic()]
    start_fork_server()
    process = multiprocessing.get_context("forkserver").Process(target=_nothing)
    process.start()
    process.join()
    times.append(time.monotonic())
    loader = _loader(Path(shards), decoder="simplejpeg", num_workers=1)
    next(loader)
    times.append(time.monotonic())
    print(times[1] - times[0], times[2] - times[1])
    loader.close()


def _nothing() -> None:
    """A process that shows that the fork server answers."""


def _compare(title: str, arms: list[Arm], *, num_images: int, rounds: int) -> None:
    print(f"\n{title}: images per CPU-second, median of {rounds} alternating rounds")
    rates: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for arm in arms:
        arm.run(BATCH)  # caches, imports, the first allocation
    for _ in range(rounds):
        for arm in arms:
            started = time.process_time()
            done = arm.run(num_images)
            rates[arm.name].append(done / (time.process_time() - started))
    base = rates[arms[0].name]
    for name, found in rates.items():
        # Of each round against the baseline of the same round: what slows the machine down slows both.
        ratio = statistics.median(ours / theirs for ours, theirs in zip(found, base, strict=True))
        print(f"  {name:42} {statistics.median(found):8.0f} {ratio:7.2f}x")


def _read_with_webdataset(shards: Path, num_images: int) -> int:
    for count, _ in enumerate(_webdataset(shards), start=1):
        if count == num_images:
            return count
    raise AssertionError("the corpus is too small")


def _read_with_lanes(shards: Path, num_images: int, *, block: int, window: int) -> int:
    data = _open(shards, block=block, window=window)
    reader = LaneReader(SampleReader(data.dataset), order=data.order)
    whole = rank_slice(BATCH, rank=0, world_size=1)
    done = 0
    while done < num_images:
        done += len(reader.read(done, global_batch=BATCH, batch_slice=whole))
    reader.close()
    return done


def _read_in_order(shards: Path, num_images: int) -> int:
    dataset = _open(shards, block=64, window=4).dataset
    reader = SampleReader(dataset)
    done = 0
    while done < num_images:
        for first in range(0, dataset.num_samples, BATCH):
            done += len(reader.read(first, min(first + BATCH, dataset.num_samples)))
    return done


def _baseline(shards: Path, num_images: int) -> int:
    transforms = _torchvision_transforms()
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE, scale=SCALE, ratio=RATIO),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    done, images = 0, []
    for sample in _webdataset(shards):
        images.append(transform(PIL.Image.open(io.BytesIO(sample["jpg"])).convert("RGB")))
        int(sample["cls"])
        if len(images) == BATCH:
            done += len(torch.stack(images))
            images = []
            if done >= num_images:
                break
    return done


def _torchvision_transforms() -> Any:
    if torch.version.cuda is None and "+" not in importlib.metadata.version("torchvision"):
        # PyPI's torchvision beside a torch that was built for CPUs: declaring the operators it cannot load lets it be imported.
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision.transforms")


def _ours(shards: Path, num_images: int, *, decoder: JpegDecoder) -> int:
    done = 0
    for part in _parts(shards, decoder=decoder):
        assert part.batch is not None, part.error
        done += len(part.batch["image"])
        if done >= num_images:
            break
    return done


def _run_loader(shards: Path, *, decoder: JpegDecoder, num_workers: int) -> LoaderRun:
    loader = _loader(shards, decoder=decoder, num_workers=num_workers)
    for _ in range(8):  # what was prepared ahead while the processes started is not counted
        next(loader)
    processes = [process.pid for process in multiprocessing.active_children()]
    assert len(processes) == num_workers, processes
    before, here, started = sum(map(_cpu_seconds, processes)), time.process_time(), time.monotonic()
    for _ in range(WORKER_BATCHES):
        next(loader)
    seconds, here = time.monotonic() - started, time.process_time() - here
    worker_seconds = sum(map(_cpu_seconds, processes)) - before
    loader.close()
    num_images = WORKER_BATCHES * BATCH
    return LoaderRun(
        images_per_second=num_images / seconds,
        worker_ms=1000 * worker_seconds / num_images,
        here_ms=1000 * here / num_images,
        possible=num_workers * num_images / worker_seconds,
    )


def _cpu_seconds(process: int | None) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _loader(shards: Path, *, decoder: JpegDecoder, num_workers: int) -> TrainLoader:
    share = Share(rank=0, world_size=1, num_workers=num_workers, prefetch=4)
    return train_loader(_parts(shards, decoder=decoder), share=share, batch_keys=frozenset({"image", "label"}))


def _parts(shards: Path, *, decoder: JpegDecoder) -> IterableDataset[Part]:
    augment = AugmentConfig(crop="random_resized", scale=SCALE, ratio=RATIO, flip=True)
    transform = TrainTransform(image_size=IMAGE_SIZE, num_channels=3, augment=augment, jpeg_decoder=decoder)
    demand = Demand(
        transform=StagedTransform(transforms=(transform,)),
        seed=0,
        global_batch=BATCH,
        start_samples=0,
        rank_slice=rank_slice(BATCH, rank=0, world_size=1),
        replaced_before={},
    )
    block, window = SMALL_WINDOWS[shards.parent.name]
    return _open(shards, block=block, window=window).parts(demand)


def _open(shards: Path, *, block: int, window: int) -> ShardData:
    return open_shards(ShardsConfig(path=str(shards), lanes=LANES, block=block, window=window), seed=0)


def _webdataset(shards: Path) -> webdataset.WebDataset:
    return webdataset.WebDataset([str(path) for path in sorted(shards.glob("*.tar"))], shardshuffle=False).repeat()


def _decoders() -> list[JpegDecoder]:
    try:
        require_turbojpeg()
    except ConfigError as error:
        print(f"\nWithout turbojpeg: {error}")
        return ["simplejpeg"]
    return ["simplejpeg", "turbojpeg"]


def _drop_from_page_cache(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
