"""Options that several commands have in common, declared once: how a command is given them beside its own."""

import functools
import inspect
from collections.abc import Callable
from typing import Any


def with_options(shared: Callable[..., None], *, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a Typer command the parameters of `shared`, which is read for its signature only, before its own.

    The command is called with their values by name as its argument `name`, a mapping.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        common = inspect.signature(shared, eval_str=True).parameters
        own = inspect.signature(command, eval_str=True).parameters
        parameters = [*common.values(), *(parameter for key, parameter in own.items() if key != name)]

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            command(**{name: {key: values.pop(key) for key in common}}, **values)

        # What Typer reads; keyword-only, so that those without a default may follow others.
        keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        wrapped.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorate
