import math

import pytest
import torch

from vitscale.nn.init import initial_value
from vitscale.nn.positions import FixedPositions, learned_positions, sincos_positions
from vitscale.nn.resample import Grid

GRID = Grid(rows=2, columns=2)


@pytest.mark.parametrize(("kind", "checksum"), [("sincos2d_mae", 69594.494), ("sincos2d_big_vision", 69623.397)])
def test_sums_to_the_reference_at_14_x_14_x_768(kind: str, checksum: float) -> None:
    table = sincos_positions(kind, rows=14, columns=14, width=768, class_token=False)
    assert table.shape == (1, 196, 768)
    assert table.double().sum().item() == pytest.approx(checksum, abs=1e-3)


def test_variants_differ_as_published() -> None:
    mae, big_vision = (
        sincos_positions(kind, rows=14, columns=14, width=768, class_token=False) for kind in ("sincos2d_mae", "sincos2d_big_vision")
    )
    assert (mae - big_vision).abs().max().item() == pytest.approx(0.025, abs=1e-3)


@pytest.mark.parametrize(("kind", "span"), [("sincos2d_mae", 4), ("sincos2d_big_vision", 3)])
def test_follows_the_formula_on_a_grid_that_is_not_square(kind: str, span: int) -> None:
    table = sincos_positions(kind, rows=2, columns=5, width=16, class_token=False)[0]
    for token in range(10):
        y, x = divmod(token, 5)
        frequencies = [10000 ** (-k / span) for k in range(4)]
        expected = [f(place * w) for place in (x, y) for f in (math.sin, math.cos) for w in frequencies]
        torch.testing.assert_close(table[token], torch.tensor(expected))


def test_class_token_has_zeros() -> None:
    with_class = sincos_positions("sincos2d_mae", rows=3, columns=3, width=8, class_token=True)
    assert torch.equal(with_class[:, 1:], sincos_positions("sincos2d_mae", rows=3, columns=3, width=8, class_token=False))
    assert with_class.shape == (1, 10, 8)
    assert not with_class[:, 0].any()


def test_fixed_table_follows_the_tokens_type_and_device_and_is_made_once() -> None:
    positions = FixedPositions("sincos2d_mae", width=8, class_token=False)
    x = torch.zeros(1, 4, 8)
    assert positions.like(x, grid=GRID) is positions.like(x, grid=GRID)
    assert positions.like(x.bfloat16(), grid=GRID).dtype == torch.bfloat16
    assert torch.equal(positions.like(x.bfloat16(), grid=GRID), positions.like(x, grid=GRID).bfloat16())
    assert positions.like(x.to("meta"), grid=GRID).is_meta
    assert positions.like(x, grid=Grid(rows=1, columns=3)).shape == (1, 3, 8)


def test_fixed_table_made_during_evaluation_can_be_trained_with() -> None:
    positions = FixedPositions("sincos2d_mae", width=8, class_token=False)
    x = torch.ones(1, 4, 8, requires_grad=True)
    with torch.inference_mode():
        positions.like(x, grid=GRID)
    (x * positions.like(x, grid=GRID)).sum().backward()  # multiplication saves the table for backward
    assert torch.equal(x.grad, positions.like(x, grid=GRID))


def test_learned_table_starts_small() -> None:
    table = learned_positions(num_tokens=50, width=64)
    value = initial_value(table, name="pos_embed", shape=table.shape, seed=0)
    assert value.shape == (1, 50, 64)
    assert value.std().item() == pytest.approx(0.02, rel=0.05)
