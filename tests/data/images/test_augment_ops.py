from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from timm.data import auto_augment as timm_ops
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as torchvision_ops
from torchvision.transforms.autoaugment import _apply_op

from vitscale.data.images.augment_ops import OPERATIONS, Operation, apply_operations

MODES = {1: "L", 3: "RGB"}
BICUBIC = PIL.Image.Resampling.BICUBIC


def photo(num_channels: int = 3, *, height: int = 40, width: int = 56) -> np.ndarray:
    """Blurred noise of every brightness, with a few hard edges."""
    random = np.random.default_rng(num_channels)
    coarse = PIL.Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), BICUBIC)
    pixels = np.array(coarse)
    pixels[5:9, 10:30] = 255
    pixels[20:30, 40:44] = 3
    return np.ascontiguousarray(pixels[:, :, :num_channels])


def applied(name: str, value: float = 0.0, *, num_channels: int = 3, **settings: Any) -> np.ndarray:
    return apply_operations(photo(num_channels), [Operation(name=name, value=value, **settings)])


def as_array(picture: PIL.Image.Image, num_channels: int) -> np.ndarray:
    return np.asarray(picture).reshape(*np.asarray(picture).shape[:2], num_channels)


def pillow(num_channels: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(photo(num_channels).squeeze(), MODES[num_channels]) if num_channels == 1 else PIL.Image.fromarray(photo())


TIMM: dict[str, tuple[Callable[..., PIL.Image.Image], list[tuple[float, tuple[Any, ...]]]]] = {
    "brightness": (timm_ops.brightness, [(0.1, (0.1,)), (1.37, (1.37,)), (1.9, (1.9,))]),
    "contrast": (timm_ops.contrast, [(0.1, (0.1,)), (1.37, (1.37,)), (1.9, (1.9,))]),
    "saturation": (timm_ops.color, [(0.1, (0.1,)), (1.37, (1.37,)), (1.9, (1.9,))]),
    "sharpness": (timm_ops.sharpness, [(0.1, (0.1,)), (1.37, (1.37,)), (1.9, (1.9,))]),
    "solarise": (timm_ops.solarize, [(0, (0,)), (26, (26,)), (128, (128,)), (256, (256,))]),
    "solarise_add": (timm_ops.solarize_add, [(0, (0,)), (99, (99,)), (110, (110,))]),
    "posterise": (timm_ops.posterize, [(1, (1,)), (4, (4,)), (8, (8,))]),
    "invert": (timm_ops.invert, [(0, ())]),
    "autocontrast": (timm_ops.auto_contrast, [(0, ())]),
    "equalise": (timm_ops.equalize, [(0, ())]),
    "blur": (timm_ops.gaussian_blur, [(0.1, (0.1,)), (1.3, (1.3,)), (2.0, (2.0,))]),
    "grayscale": (timm_ops.desaturate, [(0, (1.0,))]),
}


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_colours_change_as_in_timm(name: str, num_channels: int) -> None:
    theirs, cases = TIMM[name]
    for value, arguments in cases:
        expected = as_array(theirs(pillow(num_channels), *arguments), num_channels)
        np.testing.assert_array_equal(applied(name, value, num_channels=num_channels), expected, err_msg=str(value))


def test_an_image_without_bits_is_black() -> None:
    assert applied("posterise", 0.0).max() == 0


@pytest.mark.parametrize("resampling", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("name", "theirs", "value", "argument"),
    [
        ("shear_x", timm_ops.shear_x, 0.27, 0.27),
        ("shear_y", timm_ops.shear_y, -0.27, -0.27),
        ("translate_x", timm_ops.translate_x_abs, 22.7, 22.7),
        ("translate_y", timm_ops.translate_y_rel, -0.4 * 40, -0.4),
        ("rotate", timm_ops.rotate, 27.0, 27.0),
    ],
)
def test_pixels_move_as_in_timm(name: str, theirs: Callable[..., Any], value: float, argument: float, resampling: str) -> None:
    resample = PIL.Image.Resampling[resampling.upper()]
    expected = theirs(pillow(3), argument, resample=resample, fillcolor=(128, 128, 128))
    np.testing.assert_array_equal(applied(name, value, resampling=resampling, fill=128), np.asarray(expected))
    grey = theirs(pillow(1), argument, resample=resample, fillcolor=128)
    np.testing.assert_array_equal(applied(name, value, num_channels=1, resampling=resampling, fill=128)[:, :, 0], np.asarray(grey))


@pytest.mark.parametrize(
    ("name", "theirs", "value", "magnitude"),
    [
        ("shear_x", "ShearX", 0.7, 0.7),
        ("shear_y", "ShearY", -0.99, -0.99),
        ("translate_x", "TranslateX", -13.0, 13.9),
        ("translate_y", "TranslateY", 13.0, -13.9),
        ("rotate", "Rotate", -117.0, -117.0),
        ("brightness", "Brightness", 1.5, 0.5),
        ("saturation", "Color", 0.5, -0.5),
        ("contrast", "Contrast", 1.99, 0.99),
        ("sharpness", "Sharpness", 0.01, -0.99),
        ("posterise", "Posterize", 3.0, 3.0),
        ("solarise", "Solarize", 76.5, 76.5),
        ("autocontrast", "AutoContrast", 0.0, 0.0),
        ("equalise", "Equalize", 0.0, 0.0),
    ],
)
def test_changes_as_in_torchvision(name: str, theirs: str, value: float, magnitude: float) -> None:
    expected = _apply_op(pillow(3), theirs, magnitude, interpolation=InterpolationMode.NEAREST, fill=[7.0, 7.0, 7.0])
    np.testing.assert_array_equal(applied(name, value, fill=7), np.asarray(expected))


@pytest.mark.parametrize("turn", [-0.5, -0.13, 0.0, 0.07, 0.5])
def test_the_hue_turns_as_in_torchvision(turn: float) -> None:
    np.testing.assert_array_equal(applied("hue", turn), np.asarray(torchvision_ops.adjust_hue(pillow(3), turn)))
    np.testing.assert_array_equal(applied("hue", turn, num_channels=1), photo(1))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_is_close_to_a_gaussian(sigma: float) -> None:
    image = torch.from_numpy(photo()).permute(2, 0, 1)
    gaussian = torchvision_ops.gaussian_blur(image, kernel_size=[15, 15], sigma=[sigma, sigma]).permute(1, 2, 0).numpy()
    inner = (slice(8, -8), slice(8, -8))  # the two extend the border differently
    difference = np.abs(applied("blur", sigma).astype(int) - gaussian)[inner]
    assert difference.mean() < 1.0
    assert difference.max() <= 20


@pytest.mark.parametrize("num_channels", [1, 3])
def test_a_run_of_pointwise_operations_is_each_after_the_other(num_channels: int) -> None:
    run = [
        Operation(name="brightness", value=1.4),
        Operation(name="solarise", value=100),
        Operation(name="posterise", value=4),
        Operation(name="contrast", value=0.7),
        Operation(name="invert"),
        Operation(name="solarise_add", value=50),
    ]
    expected = photo(num_channels)
    for operation in run:
        picture = PIL.Image.fromarray(expected.squeeze())
        expected = as_array(OPERATIONS[operation.name](picture, operation), num_channels)
    np.testing.assert_array_equal(apply_operations(photo(num_channels), run), expected)


def test_takes_images_in_any_memory_order_and_leaves_them_alone() -> None:
    pixels = photo()
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)
    operations = [Operation(name="rotate", value=10), Operation(name="invert")]
    for view, plain in ((planes, pixels), (planes[:, ::-1], pixels[:, ::-1].copy())):
        np.testing.assert_array_equal(apply_operations(view, operations), apply_operations(plain, operations))
    np.testing.assert_array_equal(planes, photo())
    assert apply_operations(planes, []) is planes
