"""Everything that the loader may do to photographs, at once: the same bytes whoever does it and wherever it was interrupted."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.data.packed import pack
from tests.data.topologies import digest, make_batches
from tests.facilities import needs_turbojpeg
from vitscale.data.config import ShardsConfig
from vitscale.data.demand import Demand
from vitscale.data.images.auto_augment import PolicyConfig, RandAugmentConfig, ThreeAugmentConfig, TrivialAugmentConfig
from vitscale.data.images.photometric import BlurConfig, ColorJitterConfig, SolariseConfig
from vitscale.data.images.transforms import AugmentConfig
from vitscale.data.lanes import BatchSlice, rank_slice
from vitscale.data.loader import Share, train_loader
from vitscale.data.source import open_training_data
from vitscale.data.types import InputSpec, JpegDecoder, StagedTransform
from vitscale.data.worker import TrainParts
from vitscale.objectives.erasing import ErasingConfig
from vitscale.objectives.supervised import SupervisedConfig

GLOBAL_BATCH = 16
NUM_STEPS = 14
SECOND_STAGE = 6
"""The batch from which on images are larger."""

POLICIES: dict[str, PolicyConfig] = {
    "rand_augment": RandAugmentConfig(magnitude=9, magnitude_std=0.5, probability=1.0),
    "trivial_augment": TrivialAugmentConfig(),
    "three_augment": ThreeAugmentConfig(),
}
DECODERS = ["simplejpeg", pytest.param("turbojpeg", marks=needs_turbojpeg)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour images of any size and format, grey ones and CMYK among them; two epochs of them with repeats are 192 samples."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    samples = []
    for number in range(48):
        height, width = random.integers(20, 120, 2).tolist()
        small = PIL.Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        image = small.resize((width, height), PIL.Image.Resampling.BICUBIC)
        extension, mode = [("jpg", "RGB"), ("jpg", "RGB"), ("jpg", "L"), ("jpg", "CMYK"), ("png", "RGB"), ("webp", "RGB")][number % 6]
        stream = io.BytesIO()
        image.convert(mode).save(stream, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[extension])
        samples.append({"cls": str(number % 10).encode(), extension: stream.getvalue()})
    pack(folder, samples, samples_per_shard=20)
    return folder


def parts(folder: Path, *, policy: str, decoder: JpegDecoder, whole: BatchSlice, start: int = 0) -> TrainParts:
    objective = SupervisedConfig(
        num_classes=10,
        augment=AugmentConfig(
            crop="random_resized",
            scale=(0.08, 1.0),
            ratio=(0.75, 1.3333),
            interpolation="random",
            flip=True,
            policy=POLICIES[policy],
            color_jitter=ColorJitterConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, probability=0.8),
            grayscale=0.2,
            blur=BlurConfig(probability=0.3, sigma=(0.1, 2.0)),
            solarise=SolariseConfig(probability=0.2),
        ),
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        erasing=ErasingConfig(probability=0.5),
    )
    transforms = tuple(objective.sample_transform(InputSpec(image_size=size, num_channels=3, jpeg_decoder=decoder)) for size in (12, 20))
    data = open_training_data(ShardsConfig(path=str(folder), lanes=8, block=3, window=2, repeats=2), seed=3)
    demand = Demand(
        transform=StagedTransform(transforms=transforms, starts=(0, SECOND_STAGE * GLOBAL_BATCH)),
        seed=9,
        global_batch=GLOBAL_BATCH,
        start_samples=start * GLOBAL_BATCH,
        rank_slice=whole,
        replaced_before={},
    )
    made = data.parts(demand)
    assert isinstance(made, TrainParts)
    return made


def digests(folder: Path, *, policy: str, decoder: JpegDecoder, world_size: int = 1, num_workers: int = 0, start: int = 0) -> list[str]:
    made = make_batches(
        lambda whole: parts(folder, policy=policy, decoder=decoder, whole=whole, start=start),
        global_batch=GLOBAL_BATCH,
        world_size=world_size,
        num_workers=num_workers,
        num_steps=NUM_STEPS - start,
    )
    assert not any(made.lost)
    sizes = [batch["image"].shape[-1] for batch in made.batches]
    assert sizes == [12] * max(0, SECOND_STAGE - start) + [20] * (NUM_STEPS - max(SECOND_STAGE, start))
    assert {"image", "label", "mix", "erase", "sample_id", "epoch"} == made.batches[0].keys()
    return made.digests


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_any_topology_and_any_resume_makes_the_same_bytes(photographs: Path, policy: str, decoder: JpegDecoder) -> None:
    reference = digests(photographs, policy=policy, decoder=decoder)
    assert len(set(reference)) == NUM_STEPS
    for world_size, num_workers, start in ((8, 2, 0), (2, 3, 5), (4, 1, 11)):
        made = digests(photographs, policy=policy, decoder=decoder, world_size=world_size, num_workers=num_workers, start=start)
        assert made == reference[start:], (world_size, num_workers, start)


@pytest.mark.dist
def test_loader_processes_make_the_same_bytes(photographs: Path) -> None:
    whole = rank_slice(GLOBAL_BATCH, rank=0, world_size=1)
    loader = train_loader(
        parts(photographs, policy="rand_augment", decoder="simplejpeg", whole=whole),
        share=Share(rank=0, world_size=1, num_workers=3, prefetch=2),
        batch_keys=frozenset({"image", "label", "mix", "erase"}),
    )
    made = [digest(next(loader)) for _ in range(NUM_STEPS)]
    loader.close()
    assert made == digests(photographs, policy="rand_augment", decoder="simplejpeg")
