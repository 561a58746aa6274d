"""What the errors of local files mean: which of them say that bytes are gone, and which speak of the machine that reads."""

import errno
import os
from pathlib import Path

from vitscale.config import DataError
from vitscale.data.storage.retry import TransientError
from vitscale.data.types import UnreachableDataError

# What is listed here is lost, and another sample takes its place. All else stops the run: descriptors or memory of this process
# that ran out, rights, a stale handle or a silent server of a network file system. The bytes are whole then, and to train on
# others instead would change the run without need. Hence no list of those, which could not be complete: an error missing from
# it would lose samples, an error missing here only stops a run that goes on where it was.
_DAMAGE = {
    errno.ENOENT,  # no such file
    errno.ENOTDIR,  # a file where its folder was
    errno.EISDIR,  # a folder where it was
    errno.ELOOP,  # a link to itself where it was
    errno.EIO,  # the disk cannot give the bytes back, or the file system does not trust what it gave
    errno.ENODATA,  # the same, as drivers tell a bad sector
    errno.EILSEQ,  # the same, as drivers tell a checksum that is wrong
    errno.EBADMSG,  # a checksum of the file system is wrong
    getattr(errno, "EUCLEAN", errno.EBADMSG),  # the file system is damaged there; Linux alone has it
}


def classify_local(error: OSError, *, root: Path, name: str) -> DataError | TransientError:
    """What to raise for an error met at the file `name` under `root`: `DataError` where its bytes are gone, `UnreachableDataError`
    where the whole folder is, `TransientError` for whatever may pass."""
    problem = error.strerror or type(error).__name__
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not os.path.isdir(root):
        # A disk that was unmounted takes all of its files with it, and brings them back.
        return UnreachableDataError(
            f"{root / name}: cannot be read: there is no folder {root}. Check the data set's path, and that its file system is mounted."
        )
    if error.errno in _DAMAGE:
        return DataError(
            f"{root / name}: cannot be read: {problem}. Check the data set's path, restore the file from a copy or pack the data set again."
        )
    return TransientError(problem)
