"""Operations on the colours and the geometry of one uint8 image, each with its parameter already drawn; carried out by Pillow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL import ImageEnhance, ImageFilter, ImageOps

Image = npt.NDArray[np.uint8]
# Shape suffixes: H height, W width, C channels.
Picture = PIL.Image.Image

Resampling = Literal["nearest", "bilinear", "bicubic"]

_PILLOW_RESAMPLING = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One change of an image: a name of `OPERATIONS` and its parameter, whose meaning depends on the name."""

    name: str
    value: float = 0.0
    resampling: Resampling = "nearest"
    """For operations that move pixels."""
    fill: int = 0
    """Grey level, 0 to 255, of what moves in from outside the image."""


def apply_operations(image_HWC: Image, operations: Sequence[Operation]) -> Image:
    """The image after the operations, in order; as it is where there are none. Grey images (C = 1) have no hue and no saturation."""
    if not operations:
        return image_HWC
    picture = _as_picture(image_HWC)
    for is_pointwise, group in groupby(operations, key=lambda operation: operation.name in _POINTWISE):
        if is_pointwise:
            picture = _through_table(picture, list(group))
        else:
            for operation in group:
                picture = OPERATIONS[operation.name](picture, operation)
    return np.array(picture).reshape(image_HWC.shape)


def _as_picture(image_HWC: Image) -> Picture:
    # Plane by plane: resized images lie in memory channel by channel, and interleaving them in numpy costs six times as much.
    planes = [PIL.Image.fromarray(np.ascontiguousarray(image_HWC[:, :, channel])) for channel in range(image_HWC.shape[2])]
    return planes[0] if len(planes) == 1 else PIL.Image.merge("RGB", planes)


def _through_table(picture: Picture, operations: Sequence[Operation]) -> Picture:
    """Operations that look at one value at a time, in one pass: they are first applied to the 256 values there are."""
    table = PIL.Image.fromarray(np.arange(256, dtype=np.uint8).reshape(1, 256))
    for operation in operations:
        table = OPERATIONS[operation.name](table, operation)
    return picture.point(np.asarray(table).ravel().tolist() * len(picture.getbands()))


def _brightness(picture: Picture, operation: Operation) -> Picture:
    return ImageEnhance.Brightness(picture).enhance(operation.value)


def _contrast(picture: Picture, operation: Operation) -> Picture:
    return ImageEnhance.Contrast(picture).enhance(operation.value)


def _saturation(picture: Picture, operation: Operation) -> Picture:
    return ImageEnhance.Color(picture).enhance(operation.value)


def _sharpness(picture: Picture, operation: Operation) -> Picture:
    return ImageEnhance.Sharpness(picture).enhance(operation.value)


def _hue(picture: Picture, operation: Operation) -> Picture:
    if picture.mode == "L":
        return picture
    hue, saturation, value = picture.convert("HSV").split()
    turn = int(operation.value * 255)
    return PIL.Image.merge("HSV", (hue.point([(level + turn) % 256 for level in range(256)]), saturation, value)).convert("RGB")


def _grayscale(picture: Picture, operation: Operation) -> Picture:  # noqa: ARG001
    return picture.convert("L").convert(picture.mode)


def _blur(picture: Picture, operation: Operation) -> Picture:
    return picture.filter(ImageFilter.GaussianBlur(radius=operation.value))


def _solarise(picture: Picture, operation: Operation) -> Picture:
    return ImageOps.solarize(picture, threshold=operation.value)  # type: ignore[arg-type]  # any number serves


def _solarise_add(picture: Picture, operation: Operation) -> Picture:
    added = int(operation.value)
    return picture.point([min(255, level + added) if level < 128 else level for level in range(256)] * len(picture.getbands()))


def _posterise(picture: Picture, operation: Operation) -> Picture:
    mask = 256 - 2 ** (8 - int(operation.value))  # ImageOps.posterize refuses to keep 0 bits, which RandAugment asks for at 10
    return picture.point([level & mask for level in range(256)] * len(picture.getbands()))


def _invert(picture: Picture, operation: Operation) -> Picture:  # noqa: ARG001
    return ImageOps.invert(picture)


def _autocontrast(picture: Picture, operation: Operation) -> Picture:  # noqa: ARG001
    return ImageOps.autocontrast(picture)


def _equalise(picture: Picture, operation: Operation) -> Picture:  # noqa: ARG001
    return ImageOps.equalize(picture)


def _shear_x(picture: Picture, operation: Operation) -> Picture:
    return _affine(picture, operation, (1.0, operation.value, 0.0, 0.0, 1.0, 0.0))


def _shear_y(picture: Picture, operation: Operation) -> Picture:
    return _affine(picture, operation, (1.0, 0.0, 0.0, operation.value, 1.0, 0.0))


def _translate_x(picture: Picture, operation: Operation) -> Picture:
    return _affine(picture, operation, (1.0, 0.0, operation.value, 0.0, 1.0, 0.0))


def _translate_y(picture: Picture, operation: Operation) -> Picture:
    return _affine(picture, operation, (1.0, 0.0, 0.0, 0.0, 1.0, operation.value))


def _affine(picture: Picture, operation: Operation, to_source: tuple[float, ...]) -> Picture:
    """`to_source` takes a place in the result to its place in the picture."""
    resampling = _PILLOW_RESAMPLING[operation.resampling]
    return picture.transform(
        picture.size, PIL.Image.Transform.AFFINE, to_source, resample=resampling, fillcolor=_fill_of(picture, operation)
    )


def _rotate(picture: Picture, operation: Operation) -> Picture:
    """Counter-clockwise by degrees."""
    return picture.rotate(operation.value, resample=_PILLOW_RESAMPLING[operation.resampling], fillcolor=_fill_of(picture, operation))


def _fill_of(picture: Picture, operation: Operation) -> int | tuple[int, ...]:
    return operation.fill if picture.mode == "L" else (operation.fill,) * 3


OPERATIONS: dict[str, Callable[[Picture, Operation], Picture]] = {
    "brightness": _brightness,  # factor; 1 changes nothing, here and in the next three
    "contrast": _contrast,
    "saturation": _saturation,
    "sharpness": _sharpness,
    "hue": _hue,  # share of the colour circle
    "grayscale": _grayscale,
    "blur": _blur,  # standard deviation in pixels
    "solarise": _solarise,  # levels from here on are inverted
    "solarise_add": _solarise_add,  # added to levels below 128
    "posterise": _posterise,  # bits kept
    "invert": _invert,
    "autocontrast": _autocontrast,
    "equalise": _equalise,
    "shear_x": _shear_x,  # pixels per pixel
    "shear_y": _shear_y,
    "translate_x": _translate_x,  # pixels that the picture moves to the left, or up
    "translate_y": _translate_y,
    "rotate": _rotate,  # degrees, counter-clockwise
}
"""How each operation is carried out; the remark says what its value is."""

_POINTWISE = frozenset({"brightness", "solarise", "solarise_add", "posterise", "invert"})
"""Those whose result at a pixel and channel depends on that value alone."""
