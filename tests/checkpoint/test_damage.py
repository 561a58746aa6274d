"""The promise of the format: a flipped bit or a cut in any file of a checkpoint is found before use, and the previous one is used."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.checkpoint.simulation import make_tensors, save_as
from vitscale.checkpoint.discover import find_newest, verify
from vitscale.config import CheckpointError

TENSORS = make_tensors(seed=1, shapes={"backbone.a": (4, 6), "head.b": (3,)})
FILES = ("rank-00000.safetensors", "rank-00001.safetensors", "state.json", "config.yaml", "manifest.json")
NUM_FLIPS = 400
NUM_CUTS = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole checkpoints of steps 1 and 2; every test leaves them as they were."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (1, 2):
        save_as(TENSORS, folder=folder, step=step, world_size=2)
    assert sorted(path.name for path in (folder / "step-00000002").iterdir()) == sorted(FILES)
    return folder


@contextmanager
def _damaged(path: Path, data: bytes) -> Iterator[None]:
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(whole)


def _is_found_and_told(folder: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=name) as caught:
        verify(folder / "step-00000002")
    assert "\n" not in str(caught.value)
    found = find_newest(folder, deep=True)
    assert found.checkpoint == folder / "step-00000001"
    assert [(entry.path.name, entry.reason) for entry in found.passed_over] == [("step-00000002", str(caught.value))]


def _sampled_bits(folder: Path) -> list[tuple[str, int]]:
    """Bits of all files alike: the first and the last of each, and others by chance."""
    sizes = {name: 8 * (folder / "step-00000002" / name).stat().st_size for name in FILES}
    edges = [(name, bit) for name, size in sizes.items() for bit in (0, size - 1)]
    draw = random.Random(4)
    return edges + [(name, draw.randrange(sizes[name])) for name in (FILES * NUM_FLIPS)[: NUM_FLIPS - len(edges)]]


def test_every_flipped_bit_is_found(folder: Path) -> None:
    flips = _sampled_bits(folder)
    assert len(flips) == NUM_FLIPS
    for name, bit in flips:
        path = folder / "step-00000002" / name
        data = bytearray(path.read_bytes())
        data[bit // 8] ^= 1 << (bit % 8)
        with _damaged(path, bytes(data)):
            _is_found_and_told(folder, name)
    assert find_newest(folder).checkpoint == folder / "step-00000002"


def test_every_cut_is_found(folder: Path) -> None:
    num_cuts = 0
    for name in FILES:
        path = folder / "step-00000002" / name
        data = path.read_bytes()
        lengths = {0, 1, len(data) - 1, *random.Random(name).sample(range(len(data)), min(len(data), 30))}
        for length in lengths:
            num_cuts += 1
            with _damaged(path, data[:length]):
                _is_found_and_told(folder, name)
    assert num_cuts >= NUM_CUTS
    assert find_newest(folder).checkpoint == folder / "step-00000002"


def test_both_damaged_is_no_checkpoint_and_two_reasons(folder: Path) -> None:
    newer, older = folder / "step-00000002" / "state.json", folder / "step-00000001" / "manifest.json"
    with _damaged(newer, b"{}"), _damaged(older, b"{}"):
        found = find_newest(folder)
    assert found.checkpoint is None
    assert [entry.path.name for entry in found.passed_over] == ["step-00000002", "step-00000001"]
