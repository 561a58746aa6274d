"""Reads of files whose bytes any process can compute, through a small cache that several processes share.

Run as `python -m tests.data.cache_hammer FOLDER SEED NUM_READS`: prints `started`, then the number of cache hits.
"""

import random
import sys
from pathlib import Path

from vitscale.data.storage.block_cache import BlockCache
from vitscale.data.storage.cached_storage import CachedStorage
from vitscale.data.storage.storage import LocalStorage

BLOCK = 4096
FILE_BYTES = 10 * BLOCK + 123
NUM_FILES = 3
NUM_BLOCKS = 8
"""What the cache of the hammer holds."""


def content(number: int) -> bytes:
    """The bytes of a file."""
    return random.Random(number).randbytes(FILE_BYTES)


def make_source(folder: Path) -> None:
    """Write the files."""
    folder.mkdir()
    for number in range(NUM_FILES):
        (folder / f"{number}.tar").write_bytes(content(number))


def open_cached(folder: Path, *, num_blocks: float = 1000, identity: str = "a") -> CachedStorage:
    """The files of `folder`/source through the cache in `folder`/cache."""
    sizes = {f"{number}.tar": FILE_BYTES for number in range(NUM_FILES)}
    cache = BlockCache(folder / "cache", max_bytes=int(num_blocks * (BLOCK + 100)))
    return CachedStorage(LocalStorage(folder / "source"), cache=cache, identity=identity, sizes=sizes, block_bytes=BLOCK)


def _main(folder: Path, *, seed: int, num_reads: int) -> None:
    storage = open_cached(folder, num_blocks=NUM_BLOCKS)
    contents = [content(number) for number in range(NUM_FILES)]
    draws = random.Random(seed)
    print("started", flush=True)
    for _ in range(num_reads):
        number, offset = draws.randrange(NUM_FILES), draws.randrange(FILE_BYTES)
        length = min(draws.randrange(3 * BLOCK), FILE_BYTES - offset)
        assert storage.read_range(f"{number}.tar", offset=offset, length=length) == contents[number][offset : offset + length]
    print(storage.io_counters()["cache_hits"])


if __name__ == "__main__":
    _main(Path(sys.argv[1]), seed=int(sys.argv[2]), num_reads=int(sys.argv[3]))
