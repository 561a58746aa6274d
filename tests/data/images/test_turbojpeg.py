import ctypes.util
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import simplejpeg

from tests.facilities import needs_turbojpeg
from vitscale.config import ConfigError
from vitscale.data.images import turbojpeg
from vitscale.data.images.crops import Box
from vitscale.data.images.turbojpeg import LIBRARY_VARIABLE, decode_part, require_turbojpeg

SAMPLINGS = ("444", "422", "420", "440", "411", "Gray")


def photo(height: int, width: int) -> np.ndarray:
    """Smooth patches with edges and noise, so that no two places look alike."""
    random = np.random.default_rng(height * width)
    coarse = PIL.Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((width, height), PIL.Image.Resampling.BICUBIC)
    return np.clip(np.asarray(coarse).astype(int) + random.integers(-20, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def jpeg(height: int, width: int, sampling: str) -> bytes:
    pixels = photo(height, width)
    if sampling == "Gray":
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[:, :, :1]), colorspace="GRAY", colorsubsampling="Gray")
    return simplejpeg.encode_jpeg(pixels, quality=92, colorspace="RGB", colorsubsampling=sampling)


def progressive(height: int, width: int) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(photo(height, width)).save(stream, "JPEG", progressive=True)
    return stream.getvalue()


def boxes(height: int, width: int, *, count: int) -> Iterator[Box]:
    """The whole, the corners' pixels, and random ones."""
    random = np.random.default_rng(0)
    yield Box(top=0, left=0, height=height, width=width)
    yield Box(top=0, left=0, height=1, width=1)
    yield Box(top=height - 1, left=width - 1, height=1, width=1)
    for _ in range(count):
        top, left = int(random.integers(0, height)), int(random.integers(0, width))
        yield Box(top=top, left=left, height=int(random.integers(1, height - top + 1)), width=int(random.integers(1, width - left + 1)))


@needs_turbojpeg
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("sampling", [*SAMPLINGS, "progressive"])
def test_a_part_has_the_pixels_of_the_whole(sampling: str, shrink: int) -> None:
    for height, width in ((129, 187), (64, 96)):
        data = progressive(height, width) if sampling == "progressive" else jpeg(height, width, sampling)
        size = {"min_height": -(-height // shrink), "min_width": -(-width // shrink), "min_factor": shrink}
        for num_channels, mode in ((1, "GRAY"), (3, "RGB")):
            whole = simplejpeg.decode_jpeg(data, colorspace=mode, **size)
            for box in boxes(*whole.shape[:2], count=12):
                part = decode_part(memoryview(data), box=box, shrink=shrink, num_channels=num_channels)
                expected = whole[box.top : box.top + box.height, box.left : box.left + box.width]
                np.testing.assert_array_equal(part, expected, err_msg=f"{box} of {whole.shape}")


@needs_turbojpeg
def test_damage_down_to_the_end_of_the_part_is_an_error() -> None:
    data = jpeg(129, 187, "420")
    last_rows = Box(top=120, left=0, height=9, width=4)
    for damaged in (data[: len(data) // 2], data[:-40], data[:20], b"", b"\xff\xd8\xff"):
        with pytest.raises(ValueError, match=r"\w"):
            decode_part(damaged, box=last_rows, shrink=1, num_channels=3)


@needs_turbojpeg
def test_what_lies_below_the_part_is_not_decoded() -> None:
    data, first_rows = jpeg(129, 187, "420"), Box(top=0, left=0, height=9, width=187)
    part = decode_part(data[: len(data) // 2], box=first_rows, shrink=1, num_channels=3)
    np.testing.assert_array_equal(part, simplejpeg.decode_jpeg(data, colorspace="RGB")[:9])


@pytest.fixture
def forgotten_library() -> Iterator[None]:
    """Look for the library anew, before and after."""
    turbojpeg._library.cache_clear()
    yield
    turbojpeg._library.cache_clear()


@pytest.mark.usefixtures("forgotten_library")
def test_a_missing_library_says_where_it_was_looked_for_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "libturbojpeg.so"))
    with pytest.raises(ConfigError) as caught:
        require_turbojpeg()
    text = str(caught.value)
    assert "\n" not in text
    for part in ("jpeg_decoder is 'turbojpeg'", str(tmp_path / "libturbojpeg.so"), LIBRARY_VARIABLE, "conda install", "'simplejpeg'"):
        assert part in text


@pytest.mark.usefixtures("forgotten_library")
def test_nothing_found_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turbojpeg, "_places", lambda: iter(()))
    with pytest.raises(ConfigError, match=rf"Looked at: {LIBRARY_VARIABLE} \(not set\), .* the system's libraries \(none there\)"):
        require_turbojpeg()


@pytest.mark.usefixtures("forgotten_library")
def test_a_library_without_the_functions_of_version_3_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ctypes.util.find_library("c") or ctypes.util.find_library("m")
    assert other is not None
    monkeypatch.setenv(LIBRARY_VARIABLE, other)
    with pytest.raises(ConfigError, match=r"\(older than version 3\)"):
        require_turbojpeg()


def test_the_named_library_is_the_only_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, "/named/lib.so")
    assert list(turbojpeg._places()) == ["/named/lib.so"]
    monkeypatch.delenv(LIBRARY_VARIABLE)
    for folder in ("lib", "lib64"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "libturbojpeg.so").touch()
    monkeypatch.setattr(turbojpeg.sys, "platform", "linux")
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path))
    assert list(turbojpeg._places())[:2] == [str(tmp_path / folder / "libturbojpeg.so") for folder in ("lib", "lib64")]
