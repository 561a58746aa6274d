"""`vitscale models`: the models that a configuration can name, with what they cost. The body imports what it needs when it runs."""

from typing import TYPE_CHECKING, Annotated

import typer

from vitscale.config.presentation import present_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vitscale.models.catalogue import Entry

ImageSizeOption = Annotated[int, typer.Option("--image-size", metavar="PIXELS", min=1, help="Side of the square images.")]
FamilyOption = Annotated[str | None, typer.Option("--only", metavar="TEXT", help="List models whose name contains this.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print exact numbers as JSON.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]


def register(app: typer.Typer) -> None:
    """Add the command to `vitscale`."""
    app.command(epilog="Example: vitscale models --image-size 384 --only DINOv2")(models)


def models(image_size: ImageSizeOption = 224, only: FamilyOption = None, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the models that model.kind and model.variant can name, with parameters, forward GFLOPs and tokens at a resolution.

    Without a head; one multiply-add is 2 FLOPs. An image size that patches do not tile is rounded up to one that they do. Tokens are
    those of the first block.
    """
    with present_errors(debug=debug):
        import dataclasses
        import json

        from vitscale.config import UsageError
        from vitscale.models.catalogue import catalogue

        entries = list(catalogue(image_size=image_size, containing=only or ""))
        if not entries:
            raise UsageError(f"no model's name contains {only!r}; `vitscale models` lists them all")
        if as_json:
            print(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=2))
            return
        print(_table(entries))


def _table(entries: "Sequence[Entry]") -> str:
    rows = [("variant", "kind", "parameters", "GFLOPs", "tokens", "image")]
    rows += [
        (
            entry.name,
            entry.kind,
            f"{entry.num_parameters / 1e6:,.2f} M",
            f"{entry.forward_flops / 1e9:,.2f}",
            str(entry.num_tokens),
            str(entry.image_size),
        )
        for entry in entries
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join([*_aligned(row[:2], widths[:2], str.ljust), *_aligned(row[2:], widths[2:], str.rjust)]) for row in rows)


def _aligned(cells: "Sequence[str]", widths: "Sequence[int]", align: "Callable[[str, int], str]") -> "Iterator[str]":
    return (align(cell, width) for cell, width in zip(cells, widths, strict=True))
