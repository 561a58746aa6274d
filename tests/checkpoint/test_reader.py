"""Opening a checkpoint: tiling, shapes, exact ranges, and no more bytes read than asked for."""

import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from tests.checkpoint.simulation import SHAPES, SimulatedRanks, make_tensors, save_as
from vitscale.checkpoint import reader as reader_module
from vitscale.checkpoint.fragment_file import Piece
from vitscale.checkpoint.reader import CheckpointReader, assemble, open_on_all_ranks
from vitscale.config import CheckpointError


def _piece(start: int, stop: int, *, rank: int = 0, shape: tuple[int, ...] = (2, 5)) -> Piece:
    return Piece(name="a", kind="weight", shape=shape, start=start, stop=stop, path=Path(f"c/rank-{rank:05d}"), offset=0)


def test_pieces_in_any_order_make_a_whole() -> None:
    whole = assemble([_piece(7, 10), _piece(0, 3), _piece(3, 7)])["a", "weight"]
    assert [(piece.start, piece.stop) for piece in whole.pieces] == [(0, 3), (3, 7), (7, 10)]
    assert whole.shape == (2, 5)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([_piece(1, 10)], r"elements \[0, 1\) of a \(weight\) are missing"),
        ([_piece(0, 9)], r"elements \[9, 10\) of a \(weight\) are missing"),
        ([_piece(0, 4), _piece(5, 10)], r"elements \[4, 5\) of a \(weight\) are missing"),
        ([_piece(0, 4), _piece(3, 10)], r"elements \[3, 4\) of a \(weight\) are stored twice"),
        # The lengths sum to 10: an overlap of two hides a gap of two.
        ([_piece(0, 4), _piece(2, 6), _piece(8, 10)], r"elements \[2, 4\) of a \(weight\) are stored twice"),
        ([_piece(0, 10), _piece(0, 10, rank=1)], r"elements \[0, 10\) of a \(weight\) are stored twice"),
        ([_piece(0, 4), _piece(4, 10, rank=1, shape=(5, 2))], r"a has shape \(5, 2\) here and \(2, 5\) in rank-00000"),
    ],
)
def test_what_does_not_tile_is_refused(pieces: list[Piece], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        assemble(pieces)


@hypothesis.given(world_size=st.integers(1, 5), zero_stage=st.integers(0, 3), data=st.data())
@hypothesis.settings(max_examples=12, deadline=None)
def test_any_range_of_any_tensor_is_exact(
    tmp_path_factory: pytest.TempPathFactory, world_size: int, zero_stage: int, data: st.DataObject
) -> None:
    tensors = make_tensors(seed=3)
    path = save_as(tensors, folder=tmp_path_factory.mktemp("c"), step=1, world_size=world_size, zero_stage=zero_stage)
    reader = CheckpointReader(path)
    for (name, kind), value in tensors.items():
        low = data.draw(st.integers(0, value.numel()))
        high = data.draw(st.integers(low, value.numel()))
        assert torch.equal(reader.read(name, kind=kind, start=low, stop=high), value.reshape(-1)[low:high])
        assert torch.equal(reader.read_full(name, kind=kind), value)


def test_it_shows_what_is_inside(tmp_path: Path) -> None:
    reader = CheckpointReader(save_as(make_tensors(seed=0, kinds=("weight", "ema")), folder=tmp_path, step=6, world_size=2))
    assert reader.shapes("weight") == reader.shapes("ema") == SHAPES
    assert reader.shapes("exp_avg") == {}
    assert reader.kinds == {"weight", "ema"}
    assert reader.state == {"step": 6}
    assert reader.config_text == "seed: 6\n"
    assert (reader.manifest.step, reader.manifest.optimizer_steps, reader.manifest.world_size) == (6, 6, 2)
    with pytest.raises(CheckpointError, match=r"holds no exp_avg of 'head\.w'"):
        reader.read("head.w", kind="exp_avg")


def test_only_the_asked_elements_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = CheckpointReader(save_as(make_tensors(seed=0), folder=tmp_path, step=1, world_size=4, zero_stage=3))
    read: list[tuple[str, int]] = []
    original = reader_module.read_range

    def counted(piece: Piece, *, start: int, stop: int, **options: Any) -> None:
        read.append((piece.path.name, stop - start))
        original(piece, start=start, stop=stop, **options)

    monkeypatch.setattr(reader_module, "read_range", counted)
    reader.read("backbone.a", start=3, stop=9)  # 15 elements in slices of 4: [0,4) [4,8) [8,12) [12,15)
    assert read == [("rank-00000.safetensors", 1), ("rank-00001.safetensors", 4), ("rank-00002.safetensors", 1)]


def test_a_missing_or_resized_file_is_named_when_opened(tmp_path: Path) -> None:
    path = save_as(make_tensors(seed=0), folder=tmp_path, step=1, world_size=2)
    with (path / "rank-00001.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match=r"rank-00001\.safetensors: has \d+ bytes where"):
        CheckpointReader(path)
    (path / "rank-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"rank-00001\.safetensors: No such file.*manifest lists it"):
        CheckpointReader(path)


def test_all_ranks_open_it_from_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make_tensors(seed=0)
    path = save_as(tensors, folder=tmp_path, step=1, world_size=4, zero_stage=3)
    headers: list[str] = []
    original = reader_module.read_pieces
    monkeypatch.setattr(reader_module, "read_pieces", lambda path: (headers.append(path.name), original(path))[1])
    opened: list[str] = []
    open_file = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: (opened.append(Path(path).name), open_file(path, *rest))[1])

    def work(rank: int) -> CheckpointReader:
        reader = open_on_all_ranks(path)
        if rank == 1:
            reader.read("backbone.a", start=3, stop=7)
            reader.read("backbone.a", start=3, stop=7)
        return reader

    readers = SimulatedRanks(3).run(work)
    assert sorted(headers) == [f"rank-{rank:05d}.safetensors" for rank in range(4)]
    assert opened == ["rank-00000.safetensors", "rank-00001.safetensors"], "opened once, and only what was asked for"
    alone = CheckpointReader(path)
    for reader in readers:
        assert reader.manifest == alone.manifest
        assert reader.state == {"step": 1}
        assert all(torch.equal(reader.read_full(name, kind=kind), value) for (name, kind), value in tensors.items())


def test_what_rank_0_finds_damaged_fails_on_all(tmp_path: Path) -> None:
    path = save_as(make_tensors(seed=0), folder=tmp_path, step=1, world_size=2)
    (path / "rank-00001.safetensors").write_bytes(b"")
    results = SimulatedRanks(3).run(lambda _: open_on_all_ranks(path))
    assert [type(result) for result in results] == [CheckpointError] * 3


@pytest.mark.parametrize("name", ["state.json", "config.yaml"])
def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path, name: str) -> None:
    """As where a run directory on one machine's own disk is gone on with on two."""
    path = save_as(make_tensors(seed=1), folder=tmp_path, step=1)
    reader = CheckpointReader(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{path / name}: No such file or directory"):
        _ = reader.state if name == "state.json" else reader.config_text
