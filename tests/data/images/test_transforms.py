import io
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from pydantic import ValidationError
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize

from vitscale.config import ConfigError, DataError
from vitscale.data.images import turbojpeg
from vitscale.data.images.augment_ops import Operation, apply_operations
from vitscale.data.images.auto_augment import RandAugmentConfig
from vitscale.data.images.crops import random_resized_box
from vitscale.data.images.decode import decode_image
from vitscale.data.images.photometric import BlurConfig, ColorJitterConfig, SolariseConfig
from vitscale.data.images.transforms import AugmentConfig, EvalTransform, TrainTransform, _shift
from vitscale.data.labels import ClassTarget, MultiTarget
from vitscale.data.types import RawSample
from vitscale.dist.seeding import CounterRng

PHOTO = {"crop": "random_resized", "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}


def smooth(height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.array(PIL.Image.fromarray(random).resize((width, height), PIL.Image.Resampling.BICUBIC))


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def sample_of(pixels: np.ndarray, label: bytes = b"3") -> RawSample:
    members = {"png": memoryview(png(pixels)), "cls": memoryview(label)}
    return RawSample(sample_id=0, epoch=0, view=0, key="k", shard="train-00000.tar", members=members)


def train(pixels: np.ndarray, *, size: int, draw: int = 0, num_channels: int = 3, **augment: Any) -> np.ndarray:
    transform = TrainTransform(image_size=size, num_channels=num_channels, augment=AugmentConfig(**augment))
    fields = transform(sample_of(pixels), CounterRng(0, draw))
    image_CHW = fields["image"]
    assert isinstance(image_CHW, np.ndarray)
    assert image_CHW.shape == (num_channels, size, size)
    assert image_CHW.dtype == np.uint8
    assert image_CHW.flags.c_contiguous
    assert fields["label"] == 3
    return image_CHW


def distance(ours: list[float], theirs: list[float]) -> float:
    """The Kolmogorov-Smirnov statistic of two samples."""
    points = np.sort(np.concatenate([ours, theirs]))
    cumulative = [np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (ours, theirs)]
    return float(np.abs(cumulative[0] - cumulative[1]).max())


@pytest.mark.parametrize(("height", "width"), [(300, 400), (500, 120)])
def test_random_resized_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    count = 2000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3]) for _ in range(count)], float)
    boxes = [
        random_resized_box(height=height, width=width, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), rng=CounterRng(0, i)) for i in range(count)
    ]
    ours = np.array([(box.top, box.left, box.height, box.width) for box in boxes], float)
    assert (ours >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    features: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: np.round(box[:, 3] / box[:, 2], 6),
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
    }
    critical = 1.95 * math.sqrt(2 / count)  # p = 0.001
    for name, feature in features.items():
        assert distance(feature(ours).tolist(), feature(theirs).tolist()) < critical, name


@pytest.mark.parametrize(("height", "width", "box"), [(10, 1000, (10, 13)), (1000, 10, (13, 10)), (1, 1, (1, 1)), (1, 300, (1, 1))])
def test_an_extreme_image_gets_the_centred_box(height: int, width: int, box: tuple[int, int]) -> None:
    found = random_resized_box(height=height, width=width, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3), rng=CounterRng(0))
    assert (found.height, found.width) == box
    assert (found.top, found.left) == ((height - box[0]) // 2, (width - box[1]) // 2)


def test_a_random_resized_crop_is_the_box_as_pillow_resizes_it() -> None:
    pixels = smooth(60, 90)
    rng = CounterRng(0, 5)
    box = random_resized_box(height=60, width=90, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), rng=rng)
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    expected = np.array(PIL.Image.fromarray(pixels).crop(corners).resize((32, 32), PIL.Image.Resampling.BILINEAR))
    image_CHW = train(pixels, size=32, draw=5, **PHOTO)
    assert np.abs(image_CHW.transpose(1, 2, 0).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("down", range(-9, 10, 3))
@pytest.mark.parametrize("right", range(-9, 10, 3))
def test_shift_is_a_crop_out_of_the_padded_image(down: int, right: int) -> None:
    image_HWC = np.random.default_rng(0).integers(0, 256, (6, 8, 2), dtype=np.uint8)
    padded = np.pad(image_HWC, ((9, 9), (9, 9), (0, 0)))
    np.testing.assert_array_equal(_shift(image_HWC, down=down, right=right), padded[9 - down : 15 - down, 9 - right : 17 - right])


def test_pad_crop_reaches_every_place_equally_often() -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[4, 4] = 255
    places = [np.argwhere(train(pixels, size=8, draw=i, num_channels=1, crop="pad", padding=2)[0])[0] for i in range(1000)]
    counts = np.zeros((8, 8), int)
    np.add.at(counts, tuple(np.array(places).T), 1)
    assert counts[2:7, 2:7].sum() == 1000
    assert counts[2:7, 2:7].min() > 15
    assert counts[2:7, 2:7].max() < 75


def test_flip_mirrors_half_of_the_images() -> None:
    pixels = smooth(8, 8)
    whole = pixels.transpose(2, 0, 1)
    images = [train(pixels, size=8, draw=i, flip=True) for i in range(400)]
    mirrored = [np.array_equal(image, whole[:, :, ::-1]) for image in images]
    assert all(flipped or np.array_equal(image, whole) for flipped, image in zip(mirrored, images, strict=True))
    assert 150 < sum(mirrored) < 250


def test_without_augmentation_the_whole_image_is_squashed_to_size() -> None:
    pixels = smooth(60, 90)
    expected = np.array(PIL.Image.fromarray(pixels).resize((32, 32), PIL.Image.Resampling.BILINEAR))
    assert np.abs(train(pixels, size=32).transpose(1, 2, 0).astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(train(smooth(32, 32), size=32).transpose(1, 2, 0), smooth(32, 32))


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def as_first_written(data: bytes, *, size: int, rng: CounterRng, augment: AugmentConfig) -> np.ndarray:
    """What a training image was before there were partial decoding and operations on colours: the contract for plain recipes."""
    image_HWC = decode_image(data, num_channels=3)
    if augment.scale is not None and augment.ratio is not None:
        box = random_resized_box(height=image_HWC.shape[0], width=image_HWC.shape[1], scale=augment.scale, ratio=augment.ratio, rng=rng)
        image_HWC = image_HWC[box.top : box.top + box.height, box.left : box.left + box.width]
    if image_HWC.shape[:2] != (size, size):
        image_1CHW = torch.from_numpy(image_HWC).permute(2, 0, 1).unsqueeze(0)
        resized_1CHW = torch.nn.functional.interpolate(image_1CHW, size=(size, size), mode="bilinear", antialias=True)
        image_HWC = resized_1CHW[0].permute(1, 2, 0).numpy()
    if augment.padding is not None:
        padded_HWC = np.pad(image_HWC, ((augment.padding,) * 2, (augment.padding,) * 2, (0, 0)))
        top, left = rng.integer(0, 2 * augment.padding + 1), rng.integer(0, 2 * augment.padding + 1)
        image_HWC = padded_HWC[top : top + size, left : left + size]
    if augment.flip and rng.chance(0.5):
        image_HWC = image_HWC[:, ::-1]
    return image_HWC.transpose(2, 0, 1)


@pytest.mark.parametrize("member", ["png", "jpg"])
@pytest.mark.parametrize("settings", [{}, PHOTO, {"crop": "pad", "padding": 3}, {**PHOTO, "flip": True}, {"flip": True}])
def test_plain_recipes_are_bit_for_bit_what_they_always_were(settings: dict[str, Any], member: str) -> None:
    augment = AugmentConfig(**settings)
    transform = TrainTransform(image_size=32, num_channels=3, augment=augment)
    for draw in range(12):
        pixels = smooth(40 + draw % 3 * 10, 63)  # less than twice the size: nothing is decoded at a smaller scale
        data = png(pixels) if member == "png" else jpeg(pixels)
        sample = RawSample(sample_id=0, epoch=0, view=0, key="k", shard="s", members={member: memoryview(data), "cls": memoryview(b"3")})
        rng = CounterRng(0, draw)
        expected = as_first_written(data, size=32, rng=CounterRng(0, draw), augment=augment)
        np.testing.assert_array_equal(transform(sample, rng)["image"], expected)


def test_what_is_off_draws_nothing() -> None:
    for settings, num_draws in (({}, 0), ({"flip": True}, 1), ({"crop": "pad", "padding": 2}, 2), ({"grayscale": 0.5}, 1)):
        rng, untouched = CounterRng(5), CounterRng(5)
        TrainTransform(image_size=8, num_channels=3, augment=AugmentConfig(**settings))(sample_of(smooth(8, 8)), rng)
        for _ in range(num_draws):
            untouched.bits()
        assert rng.bits() == untouched.bits(), settings


def test_the_centre_is_the_largest_square() -> None:
    pixels = smooth(60, 90)
    expected = np.array(PIL.Image.fromarray(pixels[:, 15:75]).resize((32, 32), PIL.Image.Resampling.BILINEAR))
    assert np.abs(train(pixels, size=32, crop="centre").transpose(1, 2, 0).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizes_as_told(interpolation: str) -> None:
    pixels = smooth(60, 90)
    expected = np.array(PIL.Image.fromarray(pixels).resize((32, 32), PIL.Image.Resampling[interpolation.upper()]))
    assert np.abs(train(pixels, size=32, interpolation=interpolation).transpose(1, 2, 0).astype(int) - expected).max() <= 2


def test_random_interpolation_is_either_evenly() -> None:
    pixels = smooth(60, 90)
    either = {name: train(pixels, size=16, interpolation=name).tobytes() for name in ("bilinear", "bicubic")}
    found = [train(pixels, size=16, draw=draw, interpolation="random").tobytes() for draw in range(120)]
    assert set(found) == set(either.values())
    assert 35 < found.count(either["bicubic"]) < 85


def test_operations_follow_crop_and_flip_in_the_order_of_the_configuration() -> None:
    augment = AugmentConfig(
        flip=True,
        policy=RandAugmentConfig(magnitude=9, magnitude_std=0.5),
        color_jitter=ColorJitterConfig(brightness=0.4, hue=0.1),
        grayscale=0.5,
        blur=BlurConfig(probability=0.5, sigma=(0.1, 2.0)),
        solarise=SolariseConfig(probability=0.5),
    )
    pixels = smooth(24, 24)
    lengths = set()
    for draw in range(40):
        rng = CounterRng(0, draw)
        flipped = pixels[:, ::-1] if rng.chance(0.5) else pixels
        assert augment.policy is not None
        operations = augment.policy.draw(rng, image_size=24)
        operations += ColorJitterConfig(brightness=0.4, hue=0.1).draw(rng)
        operations += [Operation(name="grayscale")] if rng.chance(0.5) else []
        operations += BlurConfig(probability=0.5, sigma=(0.1, 2.0)).draw(rng)
        operations += SolariseConfig(probability=0.5).draw(rng)
        lengths.add(len(operations))
        transform = TrainTransform(image_size=24, num_channels=3, augment=augment)
        image_CHW = transform(sample_of(pixels), CounterRng(0, draw))["image"]
        np.testing.assert_array_equal(image_CHW, apply_operations(flipped, operations).transpose(2, 0, 1))
    assert lengths >= {3, 4, 5, 6}


def test_a_missing_decoder_is_told_when_the_transform_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSCALE_TURBOJPEG", "/nonexistent/libturbojpeg.so")
    turbojpeg._library.cache_clear()
    with pytest.raises(ConfigError, match=r"jpeg_decoder is 'turbojpeg', but no libturbojpeg .* /nonexistent/libturbojpeg.so"):
        TrainTransform(image_size=8, num_channels=3, augment=AugmentConfig(), jpeg_decoder="turbojpeg")
    turbojpeg._library.cache_clear()


def test_the_draws_depend_on_the_key_alone() -> None:
    transform = TrainTransform(image_size=16, num_channels=3, augment=AugmentConfig(**PHOTO, flip=True))
    copy = pickle.loads(pickle.dumps(transform))
    sample = sample_of(smooth(40, 50))
    images = [t(sample, CounterRng(1, 2, 3))["image"] for t in (transform, copy, transform)]
    assert all(np.array_equal(image, images[0]) for image in images)
    assert not np.array_equal(transform(sample, CounterRng(1, 2, 4))["image"], images[0])


def evaluate(pixels: np.ndarray, **settings: Any) -> np.ndarray:
    image_CHW = EvalTransform(num_channels=3, **settings)(sample_of(pixels), CounterRng(0))["image"]
    assert isinstance(image_CHW, np.ndarray)
    assert image_CHW.flags.c_contiguous
    return image_CHW


@pytest.mark.parametrize(("height", "width"), [(60, 90), (91, 60), (24, 37), (48, 48)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875])
def test_shorter_side_is_torchvisions_resize_and_centre_crop_with_pillow(
    height: int, width: int, interpolation: str, crop_fraction: float
) -> None:
    pixels = smooth(height, width)
    image_CHW = evaluate(pixels, image_size=32, resize="shorter_side", crop_fraction=crop_fraction, interpolation=interpolation)
    resized = Resize(math.floor(32 / crop_fraction), InterpolationMode(interpolation))(PIL.Image.fromarray(pixels))
    expected = np.array(CenterCrop(32)(resized))
    assert np.abs(image_CHW.transpose(1, 2, 0).astype(int) - expected).max() <= 2


def test_squash_keeps_the_whole_image() -> None:
    pixels = smooth(60, 90)
    expected = np.array(PIL.Image.fromarray(pixels).resize((32, 32), PIL.Image.Resampling.BILINEAR))
    assert np.abs(evaluate(pixels, image_size=32, resize="squash").transpose(1, 2, 0).astype(int) - expected).max() <= 1


def test_an_image_of_the_right_size_is_untouched() -> None:
    pixels = smooth(32, 32)
    for resize in ("squash", "shorter_side"):
        np.testing.assert_array_equal(evaluate(pixels, image_size=32, resize=resize), pixels.transpose(2, 0, 1))


def test_targets_are_read_beside_the_image() -> None:
    sample = sample_of(smooth(4, 4), b"1 3")
    base = TrainTransform(image_size=4, num_channels=1, augment=AugmentConfig(), targets=MultiTarget(num_classes=5))
    assert base(sample, CounterRng(0))["labels"].tolist() == [0, 1, 0, 1, 0]
    assert replace(base, targets=None)(sample, CounterRng(0)).keys() == {"image"}
    with pytest.raises(DataError, match="the model has 3 classes"):
        replace(base, targets=ClassTarget(num_classes=3))(sample_of(smooth(4, 4), b"3"), CounterRng(0))
    evaluation = EvalTransform(image_size=4, num_channels=1)
    assert evaluation(sample_of(smooth(4, 4), b"7"), CounterRng(0))["label"] == 7
    with pytest.raises(DataError, match="gives several classes to an image"):
        evaluation(sample, CounterRng(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": "pad"}, "crop 'pad' needs padding"),
        ({"crop": "random_resized", "scale": (0.08, 1.0)}, "crop 'random_resized' needs ratio"),
        ({"padding": 2}, "padding has no effect with crop 'none'"),
        ({**PHOTO, "padding": 2}, "padding has no effect with crop 'random_resized'"),
        ({"crop": "pad", "padding": 2, "scale": (0.1, 1.0)}, "scale has no effect with crop 'pad'"),
        ({**PHOTO, "scale": (0.5, 0.1)}, "scale must be two rising shares"),
        ({**PHOTO, "scale": (0.5, 1.1)}, "scale must be two rising shares"),
        ({"crop": "centre", "padding": 2}, "padding has no effect with crop 'centre'"),
        ({"grayscale": 1.5}, "less than or equal to 1"),
        ({**PHOTO, "ratio": (0.0, 1.0)}, "ratio must be two rising positive numbers"),
    ],
)
def test_an_ignored_missing_or_senseless_setting_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AugmentConfig(**settings)


@pytest.mark.parametrize(
    "policy", [{"kind": "rand_augment", "magnitude": 9.0}, {"kind": "trivial_augment_wide"}, {"kind": "three_augment"}]
)
def test_a_dumped_configuration_reads_back(policy: dict[str, Any]) -> None:
    config = AugmentConfig(
        **PHOTO,
        flip=True,
        interpolation="random",
        policy=policy,
        color_jitter={"brightness": 0.3},
        blur={"probability": 0.1, "sigma": (0.1, 2.0)},
        solarise={"probability": 0.2},
    )
    assert config.policy is not None
    assert config.policy.kind == policy["kind"]
    assert AugmentConfig.model_validate_json(config.model_dump_json()) == config
