"""The promise of the data path: the same global batches, byte for byte, whoever makes them, wherever the run was interrupted."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.data.packed import pack_images
from tests.data.topologies import Made, digest, make_batches
from vitscale.data.config import MixedSetConfig, MixtureConfig, ShardsConfig
from vitscale.data.dataset import open_dataset
from vitscale.data.demand import Demand
from vitscale.data.images.transforms import AugmentConfig, TrainTransform
from vitscale.data.lanes import rank_slice
from vitscale.data.loader import Share, TrainLoader, train_loader
from vitscale.data.replacement import Replacements
from vitscale.data.source import TrainingData, open_training_data
from vitscale.data.types import StagedTransform

GLOBAL_BATCH = 16
NUM_STEPS = 100
TOPOLOGIES = [(world_size, num_workers) for world_size in (1, 2, 4, 8) for num_workers in (0, 1, 2, 3)]
SOME = [(1, 3), (2, 2), (8, 3)]
SIZES = {"large": 241, "middle": 90, "small": 45}
TRANSFORM = TrainTransform(image_size=8, num_channels=1, augment=AugmentConfig(crop="pad", padding=2, flip=True))


@dataclass(frozen=True, kw_only=True)
class Source:
    """Training data in a folder of its own, opened anew for every run, as a resume does."""

    open: Callable[[], TrainingData]
    root: Path

    def demand(self, *, start_samples: int = 0, global_batch: int = GLOBAL_BATCH, replaced_before: Replacements | None = None) -> Demand:
        whole = rank_slice(global_batch, rank=0, world_size=1)
        return Demand(
            transform=StagedTransform(transforms=(TRANSFORM,)),
            seed=9,
            global_batch=global_batch,
            start_samples=start_samples,
            rank_slice=whole,
            replaced_before=replaced_before or {},
        )

    def make(
        self,
        *,
        world_size: int = 1,
        num_workers: int = 0,
        start: int = 0,
        num_steps: int = NUM_STEPS,
        replaced_before: Replacements | None = None,
    ) -> Made:
        """Global batches from number `start` on."""
        data, demand = self.open(), self.demand(start_samples=start * GLOBAL_BATCH, replaced_before=replaced_before)
        return make_batches(
            lambda whole: data.parts(replace(demand, rank_slice=whole)),
            global_batch=GLOBAL_BATCH,
            world_size=world_size,
            num_workers=num_workers,
            num_steps=num_steps,
        )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    for name, size in SIZES.items():
        (root / name).mkdir()
        pack_images(root / name, num_samples=size, samples_per_shard=30)
    return root


def shards(root: Path, *, repeats: int = 1) -> Source:
    config = ShardsConfig(path=str(root / "large"), lanes=8, block=4, window=2, repeats=repeats)
    return Source(open=lambda: open_training_data(config, seed=3), root=root)


def mixture(root: Path, *, repeats: int = 1) -> Source:
    weights = {"large": 0.7, "middle": 0.2, "small": 0.1}
    sets = {name: MixedSetConfig(path=str(root / name), weight=weight) for name, weight in weights.items()}
    config = MixtureConfig(sets=sets, lanes=8, block=4, window=2, repeats=repeats)
    return Source(open=lambda: open_training_data(config, seed=3), root=root)


KINDS = pytest.mark.parametrize("make_source", [shards, mixture])
MATRIX = pytest.mark.parametrize(
    ("world_size", "num_workers"),
    [pytest.param(*topology, marks=[] if topology in SOME else pytest.mark.dist) for topology in TOPOLOGIES],
)


@pytest.fixture(scope="module")
def undisturbed(packed: Path) -> Callable[[Callable[..., Source]], Made]:
    """The batches of one process, made once for each kind of data."""
    made: dict[Callable[..., Source], Made] = {}

    def of(make_source: Callable[..., Source]) -> Made:
        if make_source not in made:
            made[make_source] = make_source(packed).make()
        return made[make_source]

    return of


@KINDS
@MATRIX
def test_a_hundred_global_batches_are_the_same_bytes_for_every_topology(
    packed: Path, undisturbed: Callable[..., Made], make_source: Callable[..., Source], world_size: int, num_workers: int
) -> None:
    reference = undisturbed(make_source)
    assert len({int(epoch) for batch in reference.batches for epoch in batch["epoch"]}) >= 3, "epochs end in between"
    made = make_source(packed).make(world_size=world_size, num_workers=num_workers)
    assert made.digests == reference.digests
    assert made.replaced_before == {}


@KINDS
def test_resumes_at_random_steps_on_other_topologies(
    packed: Path, undisturbed: Callable[..., Made], make_source: Callable[..., Source]
) -> None:
    reference, draw = undisturbed(make_source).digests, random.Random(0)
    for step in draw.sample(range(1, NUM_STEPS - 2), 20):
        world_size, num_workers = draw.choice(TOPOLOGIES[1:])
        start = time.process_time()
        made = make_source(packed).make(world_size=world_size, num_workers=num_workers, start=step, num_steps=2)
        assert time.process_time() - start < 1.0, (step, world_size, num_workers)
        assert made.digests == reference[step : step + 2], (step, world_size, num_workers)


@KINDS
def test_a_resume_far_into_a_run_takes_no_longer(packed: Path, make_source: Callable[..., Source]) -> None:
    start = time.process_time()
    far = 10**12 // GLOBAL_BATCH
    one = make_source(packed).make(start=far, num_steps=2)
    assert time.process_time() - start < 1.0
    assert make_source(packed).make(world_size=2, num_workers=2, start=far, num_steps=2).digests == one.digests


@KINDS
def test_the_global_batch_doubled_in_mid_run_keeps_the_samples(
    packed: Path, undisturbed: Callable[..., Made], make_source: Callable[..., Source]
) -> None:
    source = make_source(packed)
    data, demand = source.open(), source.demand(start_samples=40 * GLOBAL_BATCH, global_batch=2 * GLOBAL_BATCH)
    doubled = make_batches(
        lambda whole: data.parts(replace(demand, rank_slice=whole)),
        global_batch=2 * GLOBAL_BATCH,
        world_size=4,
        num_workers=2,
        num_steps=10,
    )
    single = undisturbed(make_source).batches[40:60]
    for number, batch in enumerate(doubled.batches):
        pair = [rows(half) for half in single[2 * number : 2 * number + 2]]
        assert sorted(rows(batch)) == sorted(pair[0] + pair[1])
        per_lane = GLOBAL_BATCH // 8
        for lane in range(8):  # within a lane the sequence itself is kept
            here = rows(batch)[2 * per_lane * lane : 2 * per_lane * (lane + 1)]
            assert here == [row for half in pair for row in half[per_lane * lane : per_lane * (lane + 1)]]


def rows(batch: dict[str, torch.Tensor]) -> list[tuple[int, int, bytes]]:
    return [
        (epoch, sample_id, image.numpy().tobytes())
        for epoch, sample_id, image in zip(batch["epoch"].tolist(), batch["sample_id"].tolist(), batch["image"], strict=True)
    ]


def damaged_copy(packed: Path, copy: Path) -> Path:
    """The sets with a byte flipped in sample 7 of the large one."""
    shutil.copytree(packed, copy)
    dataset = open_dataset(copy / "large")
    first = copy / "large" / "train-00000.tar"
    raw = bytearray(first.read_bytes())
    raw[int(dataset.read_index(dataset.shards[0])["offset"][7]) + 600] ^= 1
    first.write_bytes(raw)
    return copy


def lossy(source: Source) -> Source:
    """The same data with one shard cut short and one missing, right after it was opened: opening would notice."""
    cut, missing = (source.root / "large" / f"train-0000{number}.tar" for number in (2, 1))
    whole = {path: path.read_bytes() for path in (cut, missing)}

    def open_and_lose() -> TrainingData:
        for path, raw in whole.items():
            path.write_bytes(raw)
        data = source.open()
        cut.write_bytes(whole[cut][: len(whole[cut]) // 2])
        missing.unlink()
        return data

    return replace(source, open=open_and_lose)


@pytest.fixture(scope="module", params=[(shards, 1), (shards, 2), (mixture, 1), (mixture, 2)], ids=lambda p: f"{p[0].__name__}-{p[1]}")
def faulty(packed: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Source, Made]:
    make_source, repeats = request.param
    source = lossy(make_source(damaged_copy(packed, tmp_path_factory.mktemp("damaged") / "sets"), repeats=repeats))
    return source, source.make(num_steps=40)


@pytest.mark.parametrize(("world_size", "num_workers"), SOME[1:])
def test_lost_samples_are_replaced_alike_by_every_topology(faulty: tuple[Source, Made], world_size: int, num_workers: int) -> None:
    source, reference = faulty
    lost_ids = {sample.sample_id for lost in reference.lost for sample in lost}
    assert lost_ids >= {7, *range(30, 60)}
    assert lost_ids <= {7, *range(30, 90)}
    assert lost_ids & set(range(60, 90)), "a shard that was cut short loses samples too"
    made = source.make(world_size=world_size, num_workers=num_workers, num_steps=40)
    assert made.digests == reference.digests
    key = {"key": lambda sample: (sample.view, sample.sample_id)}
    assert [sorted(lost, **key) for lost in made.lost] == [sorted(lost, **key) for lost in reference.lost]


def test_no_lost_sample_is_in_a_batch_and_shapes_stay(faulty: tuple[Source, Made]) -> None:
    _, made = faulty
    for batch, lost in zip(made.batches, made.lost, strict=True):
        assert batch["image"].shape == (GLOBAL_BATCH, 1, 8, 8)
        ids = set(batch["sample_id"].tolist())
        assert {sample.replaced_by for sample in lost} <= ids
        assert not ids & {7, *range(30, 60)}


def test_resumes_with_the_ledger_while_the_data_stay_damaged(faulty: tuple[Source, Made]) -> None:
    source, reference = faulty
    known = Made(batches=[], lost=reference.lost[:20]).replaced_before
    made = source.make(world_size=4, num_workers=2, start=18, num_steps=20, replaced_before=known)
    assert made.digests == reference.digests[18:38]


def test_a_replay_makes_the_same_replacements_though_the_shards_are_mended(
    faulty: tuple[Source, Made], packed: Path, request: pytest.FixtureRequest
) -> None:
    _, reference = faulty
    make_source, repeats = request.node.callspec.params["faulty"]
    made = make_source(packed, repeats=repeats).make(world_size=2, num_workers=2, num_steps=40, replaced_before=reference.replaced_before)
    assert made.digests == reference.digests
    assert made.replaced_before == reference.replaced_before


@pytest.mark.dist
@KINDS
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 1), (2, 3)])
def test_loader_processes_make_the_same_batches(
    packed: Path, undisturbed: Callable[..., Made], make_source: Callable[..., Source], world_size: int, num_workers: int
) -> None:
    source = make_source(packed)
    loaders: list[TrainLoader] = []
    for rank in range(world_size):
        whole = rank_slice(GLOBAL_BATCH, rank=rank, world_size=world_size)
        parts = source.open().parts(replace(source.demand(start_samples=17 * GLOBAL_BATCH), rank_slice=whole))
        share = Share(rank=rank, world_size=world_size, num_workers=num_workers, prefetch=2)
        loaders.append(train_loader(parts, share=share, batch_keys=frozenset({"image"})))
    digests = []
    for _ in range(NUM_STEPS - 17):
        made = [next(loader) for loader in loaders]
        digests.append(digest({key: torch.cat([part[key] for part in made]) for key in made[0]}))
    for loader in loaders:
        loader.close()
    assert digests == undisturbed(make_source).digests[17:]
