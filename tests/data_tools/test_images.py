"""Single images: what passes each check, what is refused and why, and what transcoding makes of odd ones."""

import io

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import simplejpeg

from tests.data_tools.images import animated_webp, encoded, image_bytes, jpeg_of_size, png_of_size, rotated_jpeg
from vitscale.data.images.decode import MAX_PIXELS as DECODER_LIMIT
from vitscale_data_tools.images import MAX_PIXELS, ImagePolicy, Transcode, prepare_image
from vitscale_data_tools.split import UnusableImageError

HEADER, DECODE = ImagePolicy(check="header"), ImagePolicy()
POLICIES = [HEADER, DECODE, ImagePolicy(transcode=Transcode())]


def transcoded(data: bytes, *, quality: int = 95, max_short_side: int | None = None, max_side: int | None = None) -> PIL.Image.Image:
    """The image that is stored, which is checked to be a plain baseline JPEG."""
    policy = ImagePolicy(transcode=Transcode(quality=quality, max_short_side=max_short_side, max_side=max_side))
    prepared = prepare_image(data, policy=policy)
    assert prepared.extension == "jpg"
    assert b"\xff\xc0" in prepared.data  # baseline
    assert b"\xff\xc2" not in prepared.data  # progressive
    image = PIL.Image.open(io.BytesIO(prepared.data), formats=["JPEG"])
    assert not image.getexif()
    return image


def smooth(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> PIL.Image.Image:
    """Ramps, which JPEG keeps within a few levels; the corners differ."""
    x = np.linspace(0, 255, size[0])[None, :].repeat(size[1], 0)
    y = np.linspace(0, 255, size[1])[:, None].repeat(size[0], 1)
    return PIL.Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8)).convert(mode)


PALETTE = smooth().quantize(16, dither=PIL.Image.Dither.NONE)


def difference(a: PIL.Image.Image, b: PIL.Image.Image) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean())


@pytest.mark.parametrize("policy", POLICIES, ids=["header", "decode", "transcode"])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"no image", "not a JPEG, PNG or WebP image"),
        (image_bytes(0, file_format="GIF"), "not a JPEG, PNG or WebP image"),
        (image_bytes(0, file_format="TIFF"), "not a JPEG, PNG or WebP image"),
        (image_bytes(0)[:15], "."),
        (png_of_size(11_000, 11_000), "11000 x 11000 pixels, the limit is 100000000"),
        (png_of_size(60_000, 60_000), "more pixels than the limit, which is 100000000 in all"),
        (jpeg_of_size(30_000, 30_000), "more pixels than the limit, which is 100000000 in all"),
        (jpeg_of_size(12_000, 12_000), "12000 x 12000 pixels"),
    ],
)
def test_what_no_policy_takes(policy: ImagePolicy, data: bytes, reason: str) -> None:
    with pytest.raises(UnusableImageError, match=reason):
        prepare_image(data, policy=policy)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_cut_image_is_found_by_decoding(file_format: str) -> None:
    """At any length, and by both policies that decode. (Two bytes at the end of a JPEG say nothing; libjpeg does without them.)"""
    data = image_bytes(0, file_format=file_format, size=(90, 70))
    for length in np.linspace(1, len(data) - 12, 12).astype(int).tolist():
        for policy in POLICIES[1:]:
            with pytest.raises(UnusableImageError):
                prepare_image(data[:length], policy=policy)


def test_a_header_check_sees_the_checksums_of_a_png_and_no_more_of_a_jpeg() -> None:
    png, jpeg = image_bytes(0, file_format="PNG"), image_bytes(0)
    for damaged in (png[:-30], png.replace(b"IEND", b"IENE"), png[:60] + bytes([png[60] ^ 1]) + png[61:]):
        with pytest.raises(UnusableImageError):
            prepare_image(damaged, policy=HEADER)
    assert prepare_image(jpeg[:-200], policy=HEADER).data == jpeg[:-200]


KEPT = {
    "JPEG": (image_bytes(0), "jpg", set()),
    "progressive": (image_bytes(0, progressive=True), "jpg", set()),
    "PNG": (image_bytes(0, file_format="PNG"), "png", set()),
    "WebP": (image_bytes(0, file_format="WEBP"), "webp", set()),
    "CMYK": (encoded(smooth("CMYK"), file_format="JPEG"), "jpg", set()),
    "16-bit": (encoded(PIL.Image.fromarray(np.full((5, 6), 40_000, np.uint16)), file_format="PNG"), "png", set()),
    "palette": (encoded(smooth("P"), file_format="PNG"), "png", set()),
    "1-bit": (encoded(smooth("1"), file_format="PNG"), "png", set()),
    "rotated": (rotated_jpeg(0, orientation=6), "jpg", {"rotated"}),
    "upright by EXIF": (rotated_jpeg(0, orientation=1), "jpg", set()),
    "nonsense in EXIF": (rotated_jpeg(0, orientation=77), "jpg", set()),
    "animated": (animated_webp(), "webp", {"animated"}),
}


@pytest.mark.parametrize("policy", [HEADER, DECODE], ids=["header", "decode"])
@pytest.mark.parametrize(("data", "extension", "traits"), KEPT.values(), ids=list(KEPT))
def test_bytes_are_kept(policy: ImagePolicy, data: bytes, extension: str, traits: set[str]) -> None:
    prepared = prepare_image(data, policy=policy, claimed=extension)
    assert (prepared.data, prepared.extension, prepared.traits) == (data, extension, traits)


def test_the_bytes_decide_what_an_image_is_called() -> None:
    prepared = prepare_image(image_bytes(0, file_format="PNG"), policy=DECODE, claimed="jpg")
    assert (prepared.extension, prepared.traits) == ("png", {"misnamed"})


@pytest.mark.parametrize("orientation", range(1, 9))
def test_transcoding_turns_an_image_upright(orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(), file_format="JPEG", quality=95, exif=exif)
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    result = transcoded(data)
    assert result.size == expected.size
    assert difference(result, expected) < 2
    assert prepare_image(data, policy=POLICIES[2]).traits == ({"rotated"} if orientation > 1 else set())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(smooth("CMYK"), file_format="JPEG", quality=95), smooth("CMYK").convert("RGB")),
        (encoded(PALETTE, file_format="PNG"), PALETTE.convert("RGB")),
        (encoded(smooth("L"), file_format="PNG"), smooth("L")),
        (encoded(smooth("L"), file_format="JPEG", quality=95), smooth("L")),
        (encoded(PIL.Image.fromarray(np.full((48, 64), 40_000, np.uint16)), file_format="PNG"), PIL.Image.new("L", (64, 48), 40_000 >> 8)),
        (animated_webp(), PIL.Image.new("RGB", (16, 12), "red")),
        (encoded(PIL.Image.new("RGBA", (64, 48), (0, 0, 0, 0)), file_format="PNG"), PIL.Image.new("RGB", (64, 48), "white")),
        (encoded(PIL.Image.new("LA", (64, 48), (0, 127)), file_format="PNG"), PIL.Image.new("RGB", (64, 48), (128, 128, 128))),
        (encoded(smooth(), file_format="WEBP", lossless=True), smooth()),
    ],
    ids=["CMYK", "palette", "gray", "gray JPEG", "16-bit", "animated", "transparent", "half transparent", "WebP"],
)
def test_transcoding_of_odd_images(data: bytes, expected: PIL.Image.Image) -> None:
    result = transcoded(data)
    assert (result.mode, result.size) == (expected.mode, expected.size)
    assert difference(result, expected) < 6


def test_transcoding_shrinks_to_the_shorter_side_and_never_enlarges() -> None:
    for size, expected in [((640, 480), (133, 100)), ((480, 640), (100, 133)), ((101, 300), (100, 297)), ((99, 300), (99, 300))]:
        data = encoded(smooth(size=size), file_format="JPEG", quality=95)
        result = transcoded(data, max_short_side=100)
        assert result.size == expected
        assert difference(result, smooth(size=expected)) < 4


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((640, 480), {"max_side": 100}, (100, 75)),
        ((480, 640), {"max_side": 100}, (75, 100)),
        ((100, 40), {"max_side": 100}, (100, 40)),
        ((640, 480), {"max_side": 100, "max_short_side": 60}, (80, 60)),
        ((640, 480), {"max_side": 100, "max_short_side": 90}, (100, 75)),
        ((1000, 2), {"max_side": 100}, (100, 1)),
    ],
)
def test_transcoding_shrinks_to_the_longer_side(size: tuple[int, int], limits: dict[str, int], expected: tuple[int, int]) -> None:
    assert transcoded(encoded(smooth(size=size), file_format="JPEG", quality=95), **limits).size == expected


def test_quality_is_that_of_the_encoder() -> None:
    pixels = np.asarray(PIL.Image.open(io.BytesIO(image_bytes(0))))
    for quality in (30, 90):
        prepared = prepare_image(
            encoded(PIL.Image.fromarray(pixels), file_format="PNG"), policy=ImagePolicy(transcode=Transcode(quality=quality))
        )
        assert prepared.data == simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="420"
        )


def test_a_jpeg_cannot_be_that_long() -> None:
    long = encoded(PIL.Image.new("L", (70_000, 1)), file_format="PNG")
    with pytest.raises(UnusableImageError, match="70000 x 1 pixels, a JPEG has at most 65500"):
        prepare_image(long, policy=POLICIES[2])


def test_the_limit_is_the_decoders() -> None:
    assert MAX_PIXELS == DECODER_LIMIT
