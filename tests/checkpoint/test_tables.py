"""Tables: every fact is shown, and names with brackets are no markup."""

import io
from pathlib import Path

import pytest

from tests.checkpoint.simulation import make_tensors, save_as
from vitscale.checkpoint.describe import describe_checkpoint, find_folders, list_checkpoints
from vitscale.checkpoint.retention import RetentionPolicy
from vitscale.checkpoint.tables import print_description, print_list

TENSORS = make_tensors(seed=1, shapes={"[red]a": (4, 6), "b": ()}, kinds=("weight", "ema"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (1, 2):
        save_as(TENSORS, folder=tmp_path, step=step, world_size=2, state={"step": step, "samples": 12345})
    (tmp_path / "step-00000003").mkdir()
    return tmp_path


def test_the_list_has_a_row_for_each_and_the_reason_below(folder: Path) -> None:
    stream = io.StringIO()
    print_list(list_checkpoints(find_folders(folder), policy=RetentionPolicy(keep=1)), knows_policy=True, stream=stream)
    text = stream.getvalue()
    rows = {name: next(line for line in text.splitlines() if name in line) for name in ("step-00000001", "step-00000002", "step-00000003")}
    assert "the next save deletes it" in rows["step-00000001"]
    assert "the newest" in rows["step-00000002"]
    assert "12,345" in rows["step-00000002"]
    assert "damaged" in rows["step-00000003"]
    assert "has no manifest.json" in text.splitlines()[-1]


def test_without_a_policy_nothing_is_said_of_deleting(folder: Path) -> None:
    stream = io.StringIO()
    print_list(list_checkpoints(find_folders(folder), policy=None), knows_policy=False, stream=stream)
    assert "deletes" not in stream.getvalue()


def test_the_description_shows_facts_and_tensors(folder: Path) -> None:
    stream = io.StringIO()
    print_description(describe_checkpoint(folder / "step-00000002"), stream=stream)
    text = stream.getvalue()
    for shown in ("12,345", "by 2 ranks at ZeRO stage 1", "not recorded", "25 in 2 tensors", "[red]a", "4 x 6", "scalar", "weight, ema"):
        assert shown in text, shown
