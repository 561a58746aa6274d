"""Our PNG bytes decoded by Pillow, and their size known beforehand."""

import io

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale_data_tools.png import encode_gray_png, gray_png_bytes


@given(height=st.integers(1, 60), width=st.integers(1, 60), seed=st.integers(0, 1000))
def test_pillow_reads_the_same_pixels(height: int, width: int, seed: int) -> None:
    pixels_HW = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    raw = encode_gray_png(pixels_HW)
    assert len(raw) == gray_png_bytes(height=height, width=width)
    with PIL.Image.open(io.BytesIO(raw), formats=("PNG",)) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), pixels_HW)
    with PIL.Image.open(io.BytesIO(raw)) as image:
        image.verify()  # every chunk's checksum


def test_an_image_too_large_for_one_stored_block_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        encode_gray_png(np.zeros((256, 256), np.uint8))
