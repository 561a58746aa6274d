"""How the commands show an error: one paragraph on stderr and the exit code that belongs to it."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from vitscale.config.errors import StopRequested, UserError

INTERRUPTED_EXIT_CODE = 130
"""What shells report for a program ended by Ctrl-C (128 + SIGINT)."""


@contextmanager
def present_errors(*, debug: bool) -> Iterator[None]:
    """Turn a `UserError` raised inside into its paragraph and `SystemExit` with its code; `debug` adds the trace.

    Everything else is a bug of ours and passes through, so that Python shows its trace and exits with 1.
    """
    try:
        yield
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(error if isinstance(error, StopRequested) else f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED_EXIT_CODE) from None
