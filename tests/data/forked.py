"""Work in a forked process that cannot come back: one that raised would go on as a second run of the tests, in the same folders."""

import os
import signal
import sys
import traceback
from collections.abc import Callable

_LONGEST_SECONDS = 20


def exit_code_of_fork(work: Callable[[], None]) -> int:
    """0 where `work` ended in a forked process; 1 where it raised, which is told on stderr; -14 where it hung."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_LONGEST_SECONDS)
            work()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
