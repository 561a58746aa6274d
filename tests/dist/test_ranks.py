"""Ranks as the environment says them, without a process group; test_collectives.py checks them inside one."""

import pytest

from vitscale.dist.ranks import Ranks, current_ranks

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_one_process_without_a_launcher() -> None:
    assert current_ranks() == Ranks(rank=0, world_size=1, local_rank=0)
    assert current_ranks().is_main


def test_the_launchers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(VARIABLES, ("5", "8", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert current_ranks() == Ranks(rank=5, world_size=8, local_rank=1)
    assert not current_ranks().is_main
