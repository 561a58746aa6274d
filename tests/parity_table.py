"""Prints the table of docs/models.md: `python -m tests.parity_table`."""

from tests.conftest import pytest_configure

pytest_configure()

from tests.families import FAMILIES, OTHER_GRID, OWN_GRID, Deltas, Family, measured  # noqa: E402  (what it imports is set up first)


def row(family: Family) -> str:
    """A line of the table."""
    own, other = (measured(family, grid=grid) for grid in (OWN_GRID, OTHER_GRID))
    has_table = family.config.shape.learned_positions or family.config.shape.position_bias == "relative"
    resampling = f"`{family.config.resampling}`" if has_table else "-"
    return f"| {family.name} | {family.project} | {resampling} | {_cells(own)} | {_cells(other)} |"


def _cells(deltas: Deltas) -> str:
    return f"{deltas.logits:.0e} | {deltas.gradient:.0e}"


if __name__ == "__main__":
    print("| family | oracle | resampling | logits | gradient | logits, other size | gradient, other size |")
    print("|---|---|---|---|---|---|---|")
    for family in FAMILIES:
        print(row(family), flush=True)
