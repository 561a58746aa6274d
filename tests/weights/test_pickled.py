"""Pickles: tensors come out, anything that would run code does not."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vitscale.config import CheckpointError
from vitscale.weights.pickled import _convert, convert_pickle, main

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1).half()}


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_code_does_not_run(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "extra": Attack(f"touch {tmp_path}/owned")}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"objects of posix\.system, which would run code\). Ask its author"):
        convert_pickle(tmp_path / "w.pth", target=tmp_path / "w.safetensors")
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_tensors_are_found_under_the_keys_that_programs_use(tmp_path: Path, key: str | None) -> None:
    torch.save(WEIGHTS if key is None else {key: WEIGHTS, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "w.pth")
    _convert(tmp_path / "w.pth", target=tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())


def test_without_a_target_the_shapes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": WEIGHTS}, tmp_path / "w.pth")
    monkeypatch.setattr(sys, "argv", ["pickled", str(tmp_path / "w.pth")])
    main()
    assert json.loads(capsys.readouterr().out) == {"a.weight": [2, 3], "b": [1]}
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_what_holds_no_weights_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"no tensors by name .*it holds epoch, lr"):
        _convert(tmp_path / "w.pth", target=tmp_path / "w.safetensors")


def test_tied_and_transposed_tensors_come_out_whole(tmp_path: Path) -> None:
    tied = torch.arange(6.0).view(2, 3)
    torch.save({"a": tied, "b": tied, "c": tied.T, "d": tied[1]}, tmp_path / "w.pth")
    _convert(tmp_path / "w.pth", target=tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(found[name], value) for name, value in {"a": tied, "b": tied, "c": tied.T, "d": tied[1]}.items())


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """torch.load does not look at the checksums of its archive."""
    torch.save(WEIGHTS, tmp_path / "w.pth")
    content = bytearray((tmp_path / "w.pth").read_bytes())
    content[content.index(WEIGHTS["a.weight"].numpy().tobytes()) + 6] ^= 4
    (tmp_path / "w.pth").write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"data/0 is damaged: its checksum is another one"):
        _convert(tmp_path / "w.pth", target=tmp_path / "w.safetensors")
