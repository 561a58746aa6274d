"""`vitscale events`: where a run's time went and what happened to it. The body imports what it needs when it runs."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitscale.config.presentation import present_errors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run directory, for example runs/base.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print every figure, and the events, as JSON.")]
KindOption = Annotated[list[str] | None, typer.Option("--kind", metavar="KIND", help="List events of this kind only. Repeatable.")]
TailOption = Annotated[int, typer.Option("--tail", metavar="N", min=0, help="How many of the newest events to list.")]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on listing events as they come, until Ctrl-C.")]
PlotOption = Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw the wall time by cause into this PNG.")]
StoppedOption = Annotated[
    bool, typer.Option("--include-stopped", help="Count the time between a requested stop and the next start as wall time.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]

_SECONDS_BETWEEN_LOOKS = 0.5


def register(app: typer.Typer) -> None:
    """Add the command to `vitscale`."""
    app.command(epilog="Examples: vitscale events runs/base --kind restart | vitscale events runs/base --plot time.png")(events)


def events(
    run: RunArgument,
    as_json: JsonOption = False,
    kind: KindOption = None,
    tail: TailOption = 15,
    follow: FollowOption = False,
    plot: PlotOption = None,
    include_stopped: StoppedOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what a run's wall time went into, what went wrong, how often to save, and its newest events.

    Reads events.jsonl only, also of a run that goes on, and counts all its attempts together. docs/events.md explains the causes.
    """
    with present_errors(debug=debug):
        import json
        from pathlib import Path

        from rich.console import Console

        from vitscale.config import UsageError
        from vitscale.train.goodput_plot import require_matplotlib, write_plot
        from vitscale.train.goodput_report import read_goodput
        from vitscale.train.goodput_text import print_goodput

        if follow and as_json:
            raise UsageError("--follow lists events until it is interrupted; --json prints one object: give one of the two")
        if plot is not None:
            require_matplotlib()
        folder, kinds = Path(run), kind or []
        report = read_goodput(folder, include_stopped=include_stopped)
        shown = [event for event in report.records if _is_shown(event, kinds)]
        newest = shown[max(0, len(shown) - tail) :]
        if plot is not None:
            write_plot(report, Path(plot))
        if as_json:
            print(json.dumps(json.loads(report.to_json()) | {"events": newest}, indent=2))
            return
        print_goodput(report, console=Console(highlight=False, soft_wrap=True))
        print()
        _print_events(newest)
        if follow:
            _follow(folder, kinds=kinds, after=report.num_bytes)


def _is_shown(event: "Any", kinds: "Sequence[str]") -> bool:
    """The records of time are in the table; as events they are listed to whoever asks for them."""
    return event["event"] in kinds if kinds else event["event"] != "time"


def _print_events(shown: "Sequence[Any]") -> None:
    from vitscale.train.goodput_text import event_lines

    for line in event_lines(shown):
        print(line, flush=True)


def _follow(folder: "Path", *, kinds: "Sequence[str]", after: int) -> None:
    import time

    from vitscale.train.events_file import follow_events

    try:
        for event in follow_events(folder, after=after, wait=lambda: time.sleep(_SECONDS_BETWEEN_LOOKS)):
            if _is_shown(event, kinds):
                _print_events([event])
    except KeyboardInterrupt:
        return
