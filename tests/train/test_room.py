"""What does not fit is refused with a size that can be given back; what fits is described."""

from pathlib import Path

import pytest

from vitscale.config import CheckpointError, ConfigError
from vitscale.train import room
from vitscale.train.room import find_room


@pytest.fixture(autouse=True)
def _small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda _folder: 5000)


def test_what_fits_to_the_last_byte_is_described() -> None:
    found = find_room(Path("out"), memory_bytes=1500, max_memory_bytes=1500, held="one", disk_bytes=5000)
    assert found.describe() == "memory: 1.5 KiB of tensors at least, 1.5 KiB allowed by --max-memory; disk: 4.9 KiB, 4.9 KiB free"


def test_small_sizes_are_not_called_nothing() -> None:
    with pytest.raises(CheckpointError, match=r"1\.5 KiB are allowed, and the largest in 3 forms takes 1\.5 KiB; give at least 1MiB"):
        find_room(Path("out"), memory_bytes=1501, max_memory_bytes=1500, held="the largest in 3 forms", disk_bytes=0)


def test_a_disk_that_is_too_full_is_told_before() -> None:
    with pytest.raises(ConfigError, match=r"out: cannot be written: it takes 4\.9 KiB, and 4\.9 KiB are free"):
        find_room(Path("out"), memory_bytes=0, max_memory_bytes=0, held="one", disk_bytes=5001)
