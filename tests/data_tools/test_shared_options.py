"""Commands with common options: each has them and its own, and gets the values it was given."""

from collections.abc import Mapping
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from vitscale_data_tools.shared_options import with_options


def common(folder: str, size: Annotated[int, typer.Option("--size", min=1)] = 3) -> None:
    """Read for its signature only."""


seen_so_far: list[tuple[str, Mapping[str, Any], object]] = []
app = typer.Typer()


@app.command()
@with_options(common, name="values")
def first(values: Mapping[str, Any], depth: int = 2) -> None:
    """The first one."""
    seen_so_far.append(("first", values, depth))


@app.command()
@with_options(common, name="values")
def second(target: str, values: Mapping[str, Any]) -> None:
    """Has an argument of its own without a default."""
    seen_so_far.append(("second", values, target))


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        ("first here", ("first", {"folder": "here", "size": 3}, 2)),
        ("first here --size 7 --depth 5", ("first", {"folder": "here", "size": 7}, 5)),
        ("second here there --size 4", ("second", {"folder": "here", "size": 4}, "there")),
    ],
)
def test_the_values_arrive(arguments: str, seen: tuple[str, Mapping[str, Any], object]) -> None:
    seen_so_far.clear()
    result = CliRunner().invoke(app, arguments.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert [seen] == seen_so_far


def test_each_command_explains_itself_and_checks_the_common_options() -> None:
    shown = CliRunner().invoke(app, ["second", "--help"]).output
    assert "Has an argument of its own" in shown
    assert "--size" in shown
    assert "--depth" not in shown
    assert CliRunner().invoke(app, ["first", "here", "--size", "0"]).exit_code == 2
