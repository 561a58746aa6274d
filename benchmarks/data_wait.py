"""What share of a training run's time is spent waiting for data: a whole run of a ViT on photographs, with its loader processes.

    OMP_NUM_THREADS=1 python benchmarks/data_wait.py /tmp/tiles/small/shards --workers 1

Trains for `--steps` steps through `vitscale.api.train`, exactly as `vitscale train` does, and prints the share of wall time that
the loop waited for a batch, as the run itself reports it at every step. The first step, for which the loader processes start, is
printed by itself. Photographs: benchmarks/photo_tiles.py.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

from vitscale import api
from vitscale.config import decode
from vitscale.data.dataset import open_dataset
from vitscale.run_config import RunConfig


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="packed data set of photographs")
    parser.add_argument("--variant", default="Ti/16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = run_config(arguments, output=folder)
        with contextlib.redirect_stdout(io.StringIO()):
            api.train(config)
        lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    first, *rest = [json.loads(line) for line in lines]
    seconds = [step["step_seconds_p50"] for step in rest]
    waited = sum(step["data_wait_share"] * step["step_seconds_p50"] for step in rest)
    print(f"{arguments.variant} at {arguments.image_size}, batch {arguments.batch}, {arguments.workers} loader process(es)")
    print(f"first step: {first['step_seconds_p50']:.2f} s, of which waiting for data {first['data_wait_share']:.1%}")
    print(f"the {len(rest)} steps after it: median {statistics.median(seconds):.3f} s, data wait {waited / sum(seconds):.2%}")


def run_config(arguments: argparse.Namespace, *, output: str) -> RunConfig:
    """A run of the wanted length that logs every step and saves at its end only."""
    num_classes = open_dataset(arguments.dataset).num_classes or 1
    augment = {"crop": "random_resized", "scale": [0.08, 1.0], "ratio": [0.75, 1.3333], "flip": True}
    values = {
        "name": "data_wait",
        "output": output,
        "model": {"kind": "vit", "variant": arguments.variant, "image_size": arguments.image_size},
        "objective": {"kind": "supervised", "num_classes": num_classes, "augment": augment},
        "data": {"kind": "shards", "path": str(arguments.dataset), "num_workers": arguments.workers},
        "optim": {"lr": 1e-3, "weight_decay": 0.05, "schedule": {"kind": "cosine", "warmup_samples": 0}},
        "train": {"num_samples": arguments.batch * arguments.steps, "global_batch": arguments.batch, "log_every_steps": 1, "log_images": 0},
        "checkpoint": {"every_steps": arguments.steps},
        "parallel": {"precision": "fp32"},
    }
    return decode(RunConfig, values=values, source="benchmark")


if __name__ == "__main__":
    main()
