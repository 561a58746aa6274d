"""What rows agree on: bytes, pixels, and the picture; and that rows which were kept are the same rows."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from tests.data.packed import pack
from tests.data_tools.test_perceptual_hash import picture
from vitscale.config import DataError
from vitscale.data.reader import SampleReader
from vitscale_data_tools.atomic import encode_array
from vitscale_data_tools.fingerprints import FingerprintJob, Fingerprints, decode_rows, fingerprint_part
from vitscale_data_tools.key_hashes import key_hash
from vitscale_data_tools.samples import Part


def png(pixels: np.ndarray, *, note: str = "") -> bytes:
    stream = io.BytesIO()
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("note", note)
    PIL.Image.fromarray(pixels).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def rows(folder: Path, images: list[bytes]) -> Fingerprints:
    folder.mkdir(parents=True, exist_ok=True)
    dataset = pack(folder, [{"png": image} for image in images], samples_per_shard=3)
    advanced: list[int] = []
    job = FingerprintJob(set_number=0, part=Part(first=0, stop=len(images)))
    table = fingerprint_part(job, advanced.append, readers=[SampleReader(dataset)])
    assert sum(advanced) == len(images)
    return table


def test_what_rows_agree_on(tmp_path: Path) -> None:
    image = picture(1)
    copies = rows(
        tmp_path,
        [
            png(image),
            png(image),
            png(image, note="x"),
            png(np.rot90(image)),
            png(image.reshape(60, 320, 3)),
            b"not an image",
            png(image * 0),
        ],
    )
    assert copies["key"].tolist() == [key_hash(f"{number:06d}") for number in range(7)]
    same_bytes = copies["bytes_high"] == copies["bytes_high"][0]
    same_pixels = copies["pixels_high"] == copies["pixels_high"][0]
    assert same_bytes.tolist() == [True, True, False, False, False, False, False]
    assert same_pixels.tolist() == [True, True, True, False, False, False, False]
    assert np.array_equal(same_bytes, copies["bytes_low"] == copies["bytes_low"][0])
    assert np.array_equal(same_pixels, copies["pixels_low"] == copies["pixels_low"][0])
    assert copies["is_readable"].tolist() == [True] * 5 + [False, True]
    assert copies["has_contrast"].tolist() == [True] * 5 + [False, False]


def test_grey_and_colour_of_the_same_pixels_are_the_same(tmp_path: Path) -> None:
    grey = picture(2)[:, :, 0]
    table = rows(tmp_path, [png(grey), png(np.stack([grey] * 3, axis=2))])
    assert table["pixels_high"][0] == table["pixels_high"][1]
    assert table["bytes_high"][0] != table["bytes_high"][1]


def test_rows_are_read_back_and_nothing_else_is(tmp_path: Path) -> None:
    table = rows(tmp_path, [png(picture(number)) for number in range(4)])
    assert np.array_equal(decode_rows(encode_array(table)), table)
    for raw in (b"", b"\x93NUMPY", encode_array(table)[:-3], encode_array(np.zeros(3))):
        with pytest.raises(ValueError, match=r"."):
            decode_rows(raw)


def test_a_sample_without_an_image_is_named(tmp_path: Path) -> None:
    dataset = pack(tmp_path, [{"txt": b"a"}], samples_per_shard=1)
    job = FingerprintJob(set_number=0, part=Part(first=0, stop=1))
    with pytest.raises(DataError, match=r"train-00000\.tar: sample '000000' has no image"):
        fingerprint_part(job, lambda _: None, readers=[SampleReader(dataset)])
