"""PNG files of our own: any decoder reads the pixels back, and the size is known beforehand."""

import io

import numpy as np
import PIL.Image
import pytest

from vitscale_data_tools.png import encode_png, png_bytes


@pytest.mark.parametrize("shape", [(28, 28, 1), (1, 1, 1), (3, 1000, 1), (32, 32, 3), (300, 301, 1), (256, 255, 3)])
def test_pillow_reads_it_back(shape: tuple[int, int, int]) -> None:
    """The last two fill several stored blocks, one of them exactly to a block's end."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    encoded = encode_png(pixels)
    image = PIL.Image.open(io.BytesIO(encoded), formats=["PNG"])
    assert image.mode == ("L" if shape[2] == 1 else "RGB")
    assert np.array_equal(np.asarray(image).reshape(shape), pixels)
    assert len(encoded) == png_bytes(height=shape[0], width=shape[1], num_channels=shape[2])


def test_the_end_of_a_block_is_the_end_of_the_image() -> None:
    pixels = np.zeros((257, 254, 1), np.uint8)  # 257 * 255 = 65,535 bytes with filter bytes
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(encode_png(pixels)))), pixels[..., 0])
