"""Parity with other projects: every family's logits and gradients, at the model's size and at another with that project's resampling."""

import pytest

from tests.families import FAMILIES, OTHER_GRID, OWN_GRID, Family, measured
from vitscale.nn.resample import Grid


@pytest.mark.parametrize("grid", [OWN_GRID, OTHER_GRID], ids=["own size", "another size"])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_equals_the_project_in_logits_and_gradients(family: Family, grid: Grid) -> None:
    deltas = measured(family, grid=grid)
    assert deltas.largest_logit > 0.1  # otherwise the comparison would show nothing
    assert deltas.logits <= 1e-6
    assert deltas.gradient <= 1e-5
