"""The `vitscale-data` command. Bodies import what they need when they run, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .dataset_commands import register
from .pack_cli import pack

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    # Typer's own traces print local variables, and with them whatever secret they hold.
    pretty_exceptions_enable=False,
)


app.command()(pack)
register(app)

Debug = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]


def main() -> None:
    """Entry point of the console script."""
    app()


@app.callback()
def _commands() -> None:
    """Make the data sets that vitscale trains on: plain WebDataset tars with an index and a manifest."""


@app.command()
def fetch(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder that will hold the four files.")],
    debug: Debug = False,
) -> None:
    """Get Fashion-MNIST: from Debian's package, from its authors, or a small sample that comes with vitscale."""
    from vitscale.config.presentation import present_errors

    with present_errors(debug=debug):
        from .fetch import fetch_fashion_mnist

        fetch_fashion_mnist(output)
        typer.echo(f"next: vitscale-data pack fashion-mnist {output} OUTPUT")
