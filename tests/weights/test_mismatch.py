"""Refusals: what differs is listed by kind, blocks are grouped, near names are told."""

import pytest

from vitscale.config import CheckpointError
from vitscale.weights.mismatch import refuse_mismatch


def test_equal_names_and_shapes_pass() -> None:
    refuse_mismatch(expected={"a": (1,)}, found={"a": (1,)}, where="f", hint="")


def test_everything_that_differs_is_in_one_paragraph() -> None:
    blocks = {f"blocks.{index}.norm1.weight": (8,) for index in range(12)}
    with pytest.raises(CheckpointError) as caught:
        refuse_mismatch(
            expected={**blocks, "head.weight": (5, 8), "pos_embed": (1, 10, 8)},
            found={"head.weigth": (5, 8), "pos_embed": (1, 17, 8), "blocks.0.ls1.gamma": (8,)},
            where="w.npz",
            hint=" (it looks like another)",
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "w.npz: its tensors are not those of the model that it seems to hold (it looks like another):"
    assert "  missing: blocks.{i}.norm1.weight (12 blocks)" in lines
    assert "  missing: head.weight; the nearest name is head.weigth" in lines
    assert "  unknown: blocks.0.ls1.gamma: 8" in lines
    assert "  of another shape: pos_embed: 1 x 17 x 8, expected 1 x 10 x 8" in lines


def test_long_lists_are_cut() -> None:
    with pytest.raises(CheckpointError, match="missing: 4 more"):
        refuse_mismatch(expected={f"t{letter}": (1,) for letter in "abcdefghij"}, found={}, where="f", hint="")
