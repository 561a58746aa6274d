"""Pictures stand where their tile is, at their own proportions; captions never run into the next tile."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from vitscale.config import UsageError
from vitscale_data_tools.contact_sheet import Tile, contact_sheet, write_sheet

RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def test_tiles_lie_in_rows_at_their_proportions() -> None:
    first = [Tile(image_HWC=plain(200, 400, RED), caption="a"), Tile(image_HWC=plain(40, 10, BLUE), caption="b")]
    sheet = np.asarray(contact_sheet([first, [Tile(image_HWC=None, caption="c")]], tile_size=100))
    red, blue = (np.argwhere((sheet == colour).all(axis=2)) for colour in (RED, BLUE))
    assert (red.min(axis=0).tolist(), (np.ptp(red, axis=0) + 1).tolist()) == ([6, 6], [50, 100])
    assert (blue.min(axis=0).tolist(), (np.ptp(blue, axis=0) + 1).tolist()) == ([6, 112], [80, 20])
    below = sheet[140:]
    assert (below < 128).any(), "the caption of the second row"


def test_small_pictures_keep_their_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (8, 8, 1), dtype=np.uint8)
    sheet = np.asarray(contact_sheet([[Tile(image_HWC=pixels, caption="")]], tile_size=100))
    assert np.array_equal(sheet[6 : 6 + 96 : 12, 6 : 6 + 96 : 12, 0], pixels[:, :, 0])


@pytest.mark.parametrize("caption", ["w" * 500, "\n" * 5, "日本 ü \x1b[31m", "a\nb\nc\nd", ""])
def test_captions_stay_in_their_tile(caption: str) -> None:
    tiles = [Tile(image_HWC=plain(10, 10, RED), caption=caption), Tile(image_HWC=None, caption="")]
    sheet = np.asarray(contact_sheet([tiles], tile_size=80))
    assert (sheet[:, 6 + 80 + 2 :] == 255).all()
    assert sheet.shape == (6 + 80 + 28 + 6, 2 * 86 + 6, 3)


def test_the_file_is_a_png(tmp_path: Path) -> None:
    sheet = contact_sheet([[Tile(image_HWC=plain(9, 9, BLUE), caption="x")]], tile_size=30)
    write_sheet(sheet, tmp_path / "s.png")
    with PIL.Image.open(tmp_path / "s.png") as read:
        assert read.format == "PNG"
        assert np.array_equal(np.asarray(read), np.asarray(sheet))


def test_a_picture_that_nobody_can_open_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a picture of \d+ x \d+ pixels is more than most programs open"):
        contact_sheet([[Tile(image_HWC=None, caption="")]] * 12_000, tile_size=160)
