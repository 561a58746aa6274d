"""Uploads one checkpoint: the process that the tests kill on the way. Arguments: address, path of the checkpoint."""

import sys
from pathlib import Path

from tests.checkpoint.store import quick_writer
from vitscale.checkpoint.remote import RemoteCheckpoints

if __name__ == "__main__":
    address, path = sys.argv[1:]
    RemoteCheckpoints(address, writer=quick_writer(address)).upload(Path(path))
