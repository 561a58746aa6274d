"""What an export reads is what the checkpoint holds, whole or in pieces, and the table of fixed positions beside it."""

from pathlib import Path

import pytest
import torch

from tests.train.random_run import stored_tensors, write_random_run
from vitscale.checkpoint.discover import resolve_checkpoint
from vitscale.checkpoint.reader import CheckpointReader
from vitscale.models import ViTConfig
from vitscale.nn.positions import sincos_positions
from vitscale.train import weight_files
from vitscale.train.weight_files import StoredWeights
from vitscale.weights.rule import POSITIONS


def opened(run: Path, **settings: str) -> StoredWeights:
    stored = write_random_run(run, **settings)
    assert isinstance(stored.model, ViTConfig)
    return StoredWeights(CheckpointReader(resolve_checkpoint(run)), stored=stored, model=stored.model, kind="weight")


def test_all_tensors_of_the_checkpoint_whole_and_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "_CHUNK_ELEMENTS", 7)
    weights = opened(tmp_path)
    held = stored_tensors(tmp_path)
    assert weights.shapes == {name: tuple(value.shape) for name, value in held.items()}
    assert weights.num_bytes == sum(4 * value.numel() for value in held.values())
    for name, value in held.items():
        assert torch.equal(weights.read(name), value)
        start, stop = value.numel() // 3, value.numel() - 1
        pieces = list(weights.pieces(name, start=start, stop=stop))
        assert max(len(piece) for piece in pieces) <= 7
        assert torch.equal(torch.cat(pieces), value.flatten()[start:stop])


def test_fixed_positions_are_a_tensor_elsewhere(tmp_path: Path) -> None:
    weights = opened(tmp_path, positions="sincos2d_mae")
    assert POSITIONS not in stored_tensors(tmp_path)
    table = sincos_positions("sincos2d_mae", rows=3, columns=3, width=32, class_token=True)
    assert weights.shapes[POSITIONS] == tuple(table.shape)
    assert torch.equal(weights.read(POSITIONS), table)
    (piece,) = weights.pieces(POSITIONS, start=5, stop=50)
    assert torch.equal(piece, table.flatten()[5:50])
