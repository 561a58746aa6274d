"""A grid of captioned images, for people who would rather look at the augmentation than read its configuration."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vitscale.data.images.patch_sequences import joined_images
from vitscale.data.types import Batch
from vitscale.nn.input_form import PATCH_GRID_KEY

_SMALLEST_SIDE = 96
_CAPTION_HEIGHT = 14
_GAP = 4


def picture_grid(images: Tensor, *, captions: Sequence[str]) -> Image.Image:
    """Lay out `images` (uint8, B C H W; 1 or 3 channels) in a near-square grid, each with its caption below.

    Small images are enlarged by a whole factor without smoothing, so that single pixels can be judged.
    """
    tiles = [_tile(image, caption) for image, caption in zip(images, captions, strict=True)]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width, height = tiles[0].size
    grid = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), "white")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        grid.paste(tile, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return grid


def shown_images(batch: Batch, *, count: int) -> Tensor:
    """The first `count` images of a batch (uint8, B C H W), put together again where they are sequences of patches."""
    images = batch["image"][:count]
    return joined_images(images, batch[PATCH_GRID_KEY][:count]) if PATCH_GRID_KEY in batch else images


def captions(batch: Batch, *, count: int, classes: Sequence[str] | None) -> list[str]:
    """The class name, or the number where it has no name, of the first `count` samples; several with commas; empty without labels."""
    names = dict(enumerate(classes or ()))
    if "labels" in batch:
        labels = [hot.nonzero().flatten().tolist() for hot in batch["labels"][:count]]
    elif "label" in batch:
        labels = [[label] for label in batch["label"][:count].tolist()]
    else:
        labels = [[] for _ in batch["sample_id"][:count]]
    return [", ".join(names.get(label, str(label)) for label in of_sample) for of_sample in labels]


def _tile(image: Tensor, caption: str) -> Image.Image:
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    factor = max(1, math.ceil(_SMALLEST_SIDE / min(picture.size)))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    tile = Image.new("RGB", (picture.width, picture.height + _CAPTION_HEIGHT), "white")
    tile.paste(picture, (0, 0))
    font = ImageFont.load_default(size=11)
    text = caption
    while len(text) > 1 and font.getlength(text) > picture.width:
        text = text[:-2] + "…"
    ImageDraw.Draw(tile).text((1, picture.height), text, fill="black", font=font)
    return tile
