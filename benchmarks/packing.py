"""How packing scales with processes: the whole command, start included, with one worker and with several, in turn.

    PYTHONPATH=. python benchmarks/packing.py /tmp/packing --images 60000 --workers 2 --rounds 2

makes an image folder of small JPEGs (kept there for the next time), packs it each way and prints the median seconds, the CPU
seconds of all processes together, and the ratio. On a machine that others use, twice the one CPU time over the other says what
the ratio would be on idle cores. The bytes of every pack of one kind are compared: they are equal.
"""

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg

from vitscale.dist.seeding import CounterRng

NUM_CLASSES = 100
NUM_DISTINCT = 500
HEIGHT, WIDTH = 150, 200


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to pack."""

    name: str
    options: tuple[str, ...]
    taken: dict[int, list["Taken"]] = field(default_factory=dict)
    """In each round, by number of workers."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What one run of the command took."""

    wall_seconds: float
    cpu_seconds: float


KINDS = (
    Kind(name="keep bytes, header check", options=("--check", "header")),
    Kind(name="keep bytes, decode check", options=("--check", "decode")),
    Kind(name="transcode, short side 128", options=("--transcode", "jpeg", "--max-short-side", "128")),
)


def main() -> None:
    """Make the images, pack them in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="scratch folder, on the disk to measure")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    source = arguments.folder / f"images-{arguments.images}"
    if not source.exists():
        make_images(source, num_images=arguments.images)
    for kind in KINDS:
        digests = set()
        for _ in range(arguments.rounds):
            for workers in (1, arguments.workers):
                output = arguments.folder / "out"
                taken = pack(source, output, options=(*kind.options, "--workers", str(workers)))
                kind.taken.setdefault(workers, []).append(taken)
                digests.add(hashlib.sha256((output / "manifest.json").read_bytes()).hexdigest())
                shutil.rmtree(output)
        assert len(digests) == 1, kind.name
        show(kind, num_images=arguments.images)


def make_images(folder: Path, *, num_images: int) -> None:
    """Smooth noise, which compresses about as photographs do; many files have the same content, which packing does not notice."""
    images = []
    for number in range(NUM_DISTINCT):
        rng = np.random.default_rng(CounterRng("packing", number).bits())
        coarse = rng.normal(128, 60, (HEIGHT // 10, WIDTH // 10, 3)).repeat(10, 0).repeat(10, 1)
        pixels = np.clip(coarse + rng.normal(0, 12, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
        images.append(simplejpeg.encode_jpeg(pixels, quality=85, colorsubsampling="420"))
    building = folder.with_name(f"{folder.name}.building")
    for label in range(NUM_CLASSES):
        (building / f"class{label:03d}").mkdir(parents=True)
    for number in range(num_images):
        (building / f"class{number % NUM_CLASSES:03d}" / f"{number:06d}.jpg").write_bytes(images[number % NUM_DISTINCT])
    building.rename(folder)


def pack(source: Path, output: Path, *, options: tuple[str, ...]) -> Taken:
    """Run the command."""
    command = [sys.executable, "-m", "vitscale_data_tools", "pack", "image-folder", str(source), str(output), "--shard-mebibytes", "16"]
    started, cpu_before = time.perf_counter(), cpu_seconds()
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    return Taken(wall_seconds=time.perf_counter() - started, cpu_seconds=cpu_seconds() - cpu_before)


def cpu_seconds() -> float:
    """Of all processes that this one started and that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def show(kind: Kind, *, num_images: int) -> None:
    """One line per number of workers: medians, and the ratio."""
    medians = {
        workers: Taken(
            wall_seconds=statistics.median(taken.wall_seconds for taken in runs),
            cpu_seconds=statistics.median(taken.cpu_seconds for taken in runs),
        )
        for workers, runs in kind.taken.items()
    }
    for workers, taken in medians.items():
        ratio = medians[1].wall_seconds / taken.wall_seconds
        rate = f"{taken.wall_seconds:6.1f} s wall, {num_images / taken.wall_seconds:6.0f} images/s, {taken.cpu_seconds:6.1f} s CPU"
        print(f"{kind.name:28} {workers} worker{'s' * (workers > 1)}: {rate}, ratio {ratio:.2f}", flush=True)


def environment() -> dict[str, str]:
    """The packages are found in the checkout whatever is installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


if __name__ == "__main__":
    main()
