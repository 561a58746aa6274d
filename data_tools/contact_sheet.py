"""Pictures in rows of tiles with captions, as one PNG: for people who would rather look than read a report."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from vitscale.config import UsageError

from .atomic import replace_file

# Shape suffixes: H height, W width, C channels.
Pixels = npt.NDArray[np.uint8]

_MOST_PIXELS = 1 << 28
_GAP = 6
_LINE_HEIGHT = 14
_NUM_LINES = 2


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One picture, uint8 with 1 or 3 channels, and up to two lines below it; without pixels only the lines."""

    image_HWC: Pixels | None
    caption: str


def contact_sheet(rows: Sequence[Sequence[Tile]], *, tile_size: int) -> PIL.Image.Image:
    """Lay out rows of tiles, each picture within a square of `tile_size` pixels at its own proportions.

    Small pictures are enlarged by a whole factor without smoothing, so that single pixels can be judged. Raises `UsageError`
    for more tiles than a picture can hold that anybody can open.
    """
    width, height = tile_size + _GAP, tile_size + _NUM_LINES * _LINE_HEIGHT + _GAP
    size = max(len(row) for row in rows) * width + _GAP, len(rows) * height + _GAP
    if size[0] * size[1] > _MOST_PIXELS:
        raise UsageError(f"a picture of {size[0]} x {size[1]} pixels is more than most programs open. Ask for fewer samples or views.")
    sheet = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(sheet)
    font = PIL.ImageFont.load_default(size=11)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            left, top = _GAP + x * width, _GAP + y * height
            if tile.image_HWC is not None:
                sheet.paste(_fitted(tile.image_HWC, tile_size), (left, top))
            for number, line in enumerate(tile.caption.split("\n")[:_NUM_LINES]):
                place = (left, top + tile_size + number * _LINE_HEIGHT)
                draw.text(place, _shortened(line, font=font, width=tile_size), fill="black", font=font)
    return sheet


def write_sheet(sheet: PIL.Image.Image, path: Path) -> None:
    """Write a PNG, complete or not at all. Raises `OSError`."""
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    replace_file(path, stream.getvalue())


def _fitted(image_HWC: Pixels, size: int) -> PIL.Image.Image:
    picture = PIL.Image.fromarray(image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC).convert("RGB")
    longest = max(picture.size)
    if longest <= size:
        factor = size // longest
        return picture.resize((picture.width * factor, picture.height * factor), PIL.Image.Resampling.NEAREST)
    picture.thumbnail((size, size), PIL.Image.Resampling.LANCZOS)
    return picture


def _shortened(text: str, *, font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont, width: int) -> str:
    """The text, cut where it is wider than a tile. Letters that the built-in font lacks are shown as boxes."""
    text = "".join(letter if letter.isprintable() else " " for letter in text[:200])
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "…"
    return text
