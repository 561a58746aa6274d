"""Child processes that do not outlive the process that started them, not even when that one is killed."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """Leave, with exit code 1, as soon as the parent process is gone. Called once, in a child that multiprocessing started."""
    threading.Thread(target=_leave_after_parent, name="parent-watch", daemon=True).start()


def _leave_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
