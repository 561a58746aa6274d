"""Keeps what was imported out of later garbage collections: one is run whenever an engine starts or ends, and looking through
all of torch takes many times longer than the engine itself."""

import gc
import importlib
import sys


def skip_imports() -> None:
    """Call it when the imports are done; nothing that is alive then is looked at, or freed, by the collector again."""
    if "deepspeed" in sys.modules:
        importlib.import_module("torch._dynamo")  # as large as the rest of torch; the first optimizer imports it
    gc.collect()
    gc.freeze()
