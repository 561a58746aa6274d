"""Where to crop: boxes in pixels of the source image, and by how much a decoder may shrink what it decodes of one."""

import math
from dataclasses import dataclass

from vitscale.dist.seeding import CounterRng

_CROP_TRIES = 10
_LARGEST_SHRINK = 8  # what a JPEG's 8x8 blocks allow


@dataclass(frozen=True, kw_only=True)
class Box:
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def whole(*, height: int, width: int) -> Box:
    """The box that leaves nothing out."""
    return Box(top=0, left=0, height=height, width=width)


def random_resized_box(*, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: CounterRng) -> Box:
    """Where to crop: a uniform share of the area, a log-uniform aspect ratio, a uniform place (Szegedy et al. 2015).

    As in torchvision's RandomResizedCrop: ten tries, then the largest centred box whose ratio is allowed.
    """
    for _ in range(_CROP_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = rng.integer(0, height - box_height + 1), rng.integer(0, width - box_width + 1)
            return Box(top=top, left=left, height=box_height, width=box_width)
    allowed = min(max(width / height, ratio[0]), ratio[1])
    # Rounding may pass the border by one pixel, and a sliver may round to nothing.
    box_height, box_width = max(1, min(height, round(width / allowed))), max(1, min(width, round(height * allowed)))
    return Box(top=(height - box_height) // 2, left=(width - box_width) // 2, height=box_height, width=box_width)


def centred_square(*, height: int, width: int) -> Box:
    """The largest square in the middle."""
    side = min(height, width)
    return Box(top=(height - side) // 2, left=(width - side) // 2, height=side, width=side)


def shrink_for(box: Box, *, size: int) -> int:
    """The largest of 1, 2, 4 and 8 by which the box can shrink and still have `size` pixels on both sides."""
    shrink = 1
    while shrink < _LARGEST_SHRINK and min(box.height, box.width) >= 2 * shrink * size:
        shrink *= 2
    return shrink


def shrunk(box: Box, *, shrink: int) -> Box:
    """The box in an image shrunk to `1 / shrink`, its edges rounded to the nearest pixel there."""
    top, left = (_nearest(edge, shrink) for edge in (box.top, box.left))
    bottom, right = (_nearest(edge, shrink) for edge in (box.top + box.height, box.left + box.width))
    return Box(top=top, left=left, height=bottom - top, width=right - left)


def _nearest(edge: int, shrink: int) -> int:
    """Half a pixel is rounded up: the last pixel of the shrunk image may be cut short, and is kept."""
    return (2 * edge + shrink) // (2 * shrink)
