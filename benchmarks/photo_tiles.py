"""Makes the corpus of `benchmarks/streaming.py`: JPEG tiles cut from photographs, packed as shards.

The photographs are those of two Debian packages; any folder of large JPEGs will do.

    apt-get install lomiri-wallpapers-16.04 lomiri-wallpapers-20.04
    PYTHONPATH=. python benchmarks/photo_tiles.py /usr/share/backgrounds /tmp/tiles

writes, each as an image folder and as shards:

    /tmp/tiles/small        3000 tiles of about 500 x 375, quality 90 to 96
    /tmp/tiles/large        240 tiles of about 1600 x 1200, quality 75 to 85
    /tmp/tiles/large_fine   the same, quality 90 to 96

Four of five have 4:2:0 chroma. The quality matters as much as the size: reading the entropy code costs the same with every decoder,
and there is twice as much of it at quality 93 as at 80. The same input gives the same bytes.
"""

import argparse
import io
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import PIL.Image

from vitscale.dist.seeding import CounterRng

_SHARE_420 = 0.8
_SUBSAMPLING_444, _SUBSAMPLING_420 = 0, 2
_SIZE_SPREAD = 0.15
_SHARE_PORTRAIT = 0.25
_MOST_CUT = 2.0  # a tile shows at least half of the width or height, as detailed as the pictures people share


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One set of tiles; sizes in pixels."""

    name: str
    num_tiles: int
    width: int
    height: int
    samples_per_shard: int
    quality: tuple[int, int]
    pixels: Literal["shrunk", "native"]
    """shrunk: of the photograph at a random smaller size, so that a tile shows much of it. native: as the camera took them."""


CORPORA = (
    Corpus(name="small", num_tiles=3000, width=500, height=375, samples_per_shard=250, quality=(90, 96), pixels="shrunk"),
    Corpus(name="large", num_tiles=240, width=1600, height=1200, samples_per_shard=60, quality=(75, 85), pixels="native"),
    Corpus(name="large_fine", num_tiles=240, width=1600, height=1200, samples_per_shard=60, quality=(90, 96), pixels="native"),
)


def main() -> None:
    """Cut and pack the corpora."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of JPEG photographs")
    parser.add_argument("output", type=Path, help="folder to write")
    arguments = parser.parse_args()
    photos = sorted(arguments.photos.glob("*.jpg"))
    if not photos:
        parser.error(f"{arguments.photos}: no *.jpg there")
    for corpus in CORPORA:
        images, shards = arguments.output / corpus.name / "images", arguments.output / corpus.name / "shards"
        num_bytes = write_tiles(corpus, photos=photos, folder=images)
        print(f"{corpus.name}: {corpus.num_tiles} tiles, {num_bytes / corpus.num_tiles / 1000:.0f} kB each")
        command = [sys.executable, "-m", "vitscale_data_tools", "pack", "image-folder", str(images), str(shards)]
        subprocess.run([*command, "--samples-per-shard", str(corpus.samples_per_shard)], check=True)


def write_tiles(corpus: Corpus, *, photos: list[Path], folder: Path) -> int:
    """Write the tiles, one class folder per photograph; returns the bytes written."""
    num_bytes = 0
    for number, photo in enumerate(photos):
        (folder / photo.stem).mkdir(parents=True)
        wanted = (number + 1) * corpus.num_tiles // len(photos) - number * corpus.num_tiles // len(photos)
        for index, data in enumerate(tiles(photo, corpus=corpus, num_tiles=wanted)):
            num_bytes += (folder / photo.stem / f"{index:04d}.jpg").write_bytes(data)
    return num_bytes


def tiles(photo: Path, *, corpus: Corpus, num_tiles: int) -> Iterator[bytes]:
    """JPEGs cut at random places out of the photograph."""
    whole = PIL.Image.open(photo).convert("RGB")
    for index in range(num_tiles):
        rng = CounterRng("photo_tiles", photo.name, corpus.name, index)
        width, height = _tile_size(corpus, rng)
        least = max(width / whole.width, height / whole.height)
        if least > 1:  # a photograph that is too small gives a smaller tile
            width, height, least = math.floor(width / least), math.floor(height / least), 1.0
        share = 1.0 if corpus.pixels == "native" else rng.uniform(least, min(1.0, _MOST_CUT * least))
        side = 1 / share  # of the photograph, in its pixels, for one pixel of the tile
        box_width, box_height = min(whole.width, width * side), min(whole.height, height * side)
        left, top = rng.uniform(0, whole.width - box_width), rng.uniform(0, whole.height - box_height)
        tile = whole.resize((width, height), PIL.Image.Resampling.LANCZOS, box=(left, top, left + box_width, top + box_height))
        stream = io.BytesIO()
        subsampling = _SUBSAMPLING_420 if rng.chance(_SHARE_420) else _SUBSAMPLING_444
        tile.save(stream, "JPEG", quality=rng.integer(corpus.quality[0], corpus.quality[1] + 1), subsampling=subsampling)
        yield stream.getvalue()


def _tile_size(corpus: Corpus, rng: CounterRng) -> tuple[int, int]:
    spread = rng.uniform(1 - _SIZE_SPREAD, 1 + _SIZE_SPREAD)
    width, height = round(corpus.width * spread), round(corpus.height * spread)
    return (height, width) if rng.chance(_SHARE_PORTRAIT) else (width, height)


if __name__ == "__main__":
    main()
