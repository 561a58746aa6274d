"""The training batches of a data set, read in a process that has its own environment from the start, as a run has.

Run as `python -m tests.data.remote_batches ROOT NUM_WORKERS [CACHE]`: prints the sha256 of each of `NUM_STEPS` batches.
"""

import hashlib
import sys

import torch

from vitscale.data.dataset import open_dataset
from vitscale.data.demand import Demand
from vitscale.data.images.transforms import AugmentConfig, TrainTransform
from vitscale.data.lanes import rank_slice
from vitscale.data.loader import Share, train_loader
from vitscale.data.order import Order
from vitscale.data.source import ShardData
from vitscale.data.storage.block_cache import CacheConfig
from vitscale.data.types import StagedTransform

NUM_STEPS = 12


def batch_hashes(root: str, *, num_workers: int, cache: CacheConfig | None = None) -> list[str]:
    """A digest of the images, labels and ids of each batch."""
    dataset = open_dataset(root, cache=cache)
    demand = Demand(
        transform=StagedTransform(
            transforms=(TrainTransform(image_size=8, num_channels=1, augment=AugmentConfig(crop="pad", padding=2, flip=True)),)
        ),
        seed=9,
        global_batch=16,
        start_samples=0,
        rank_slice=rank_slice(16, rank=0, world_size=1),
        replaced_before={},
    )
    order = Order(num_samples=dataset.num_samples, seed=3, lanes=8, block=4, window=2)
    share = Share(rank=0, world_size=1, num_workers=num_workers, prefetch=2)
    loader = train_loader(ShardData(dataset=dataset, order=order).parts(demand), share=share, batch_keys=frozenset({"image", "label"}))
    batches = [next(loader) for _ in range(NUM_STEPS)]
    loader.close()
    return [hashlib.sha256(b"".join(batch[key].numpy().tobytes() for key in sorted(batch))).hexdigest() for batch in batches]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = sys.argv[3] if len(sys.argv) > 3 else None
    config = None if folder is None else CacheConfig(path=folder, max_gib=0.0625)
    print("\n".join(batch_hashes(sys.argv[1], num_workers=int(sys.argv[2]), cache=config)))
