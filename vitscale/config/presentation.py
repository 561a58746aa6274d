"""How the commands show an error: one paragraph on stderr and the exit code that belongs to it."""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from vitscale.config.errors import StopRequested, UserError

INTERRUPTED_EXIT_CODE = 130
"""What shells report for a program ended by Ctrl-C (128 + SIGINT)."""

QUIET_SECONDS = 5.0
"""How long a process that leaves an error to another one waits before it ends."""


@contextmanager
def present_errors(*, debug: bool) -> Iterator[None]:
    """Turn a `UserError` raised inside into its paragraph and `SystemExit` with its code; `debug` adds the trace.

    Of the processes of a torchrun that raise the same error, the first of the machine or of the run shows it.
    Everything else is a bug of ours and passes through, so that Python shows its trace and exits with 1.
    """
    try:
        yield
    except UserError as error:
        if debug:
            traceback.print_exc()
        if _shows(error):
            print(error if isinstance(error, StopRequested) else f"error: {error}", file=sys.stderr, flush=True)
        else:
            # The first process that ends makes torchrun end the others: the one that shows the error must be it.
            time.sleep(QUIET_SECONDS)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED_EXIT_CODE) from None


def _shows(error: UserError) -> bool:
    """Whether it is for this process to show the error: the others that raise the same one keep quiet."""
    variable = {"rank": None, "node": "LOCAL_RANK", "run": "RANK"}[error.scope]
    return variable is None or os.environ.get(variable, "0") == "0"
