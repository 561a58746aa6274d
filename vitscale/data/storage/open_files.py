"""The files of a folder that were read last, kept open."""

import os
import threading
from collections import OrderedDict
from pathlib import Path

_MOST_OPEN = 64


class OpenFile:
    """A descriptor that is closed with its last user, so that dropping it from the cache cannot close it under a reader."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, *, offset: int, length: int) -> bytes:
        """The bytes from `offset` on, fewer than `length` only where the file ends."""
        data = os.pread(self._descriptor, length, offset)
        while len(data) < length:  # one call returns at most 2 GiB
            more = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)


class OpenFiles:
    """The files used last, by name. For threads, and usable after a fork."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._forget()

    def get(self, name: str) -> OpenFile | None:
        """The file, where it is open."""
        self._check_process()
        with self._lock:
            file = self._files.get(name)
            if file is not None:
                self._files.move_to_end(name)
            return file

    def open(self, name: str) -> OpenFile:
        """The file, opened anew: not the one of that name that may be open. Raises `OSError`."""
        self._check_process()
        file = OpenFile(self._root / name)
        with self._lock:
            self._files[name] = file
            self._files.move_to_end(name)
            if len(self._files) > _MOST_OPEN:
                self._files.popitem(last=False)
        return file

    def clear(self) -> None:
        """Close all that nobody is reading at the moment."""
        self._check_process()
        with self._lock:
            self._files.clear()

    def drop(self, name: str) -> None:
        """Close the file, as soon as nobody is reading it."""
        self._check_process()
        with self._lock:
            self._files.pop(name, None)

    def _check_process(self) -> None:
        if self._process != os.getpid():
            self._forget()

    def _forget(self) -> None:
        """Start empty; after a fork also with a lock that no thread of the parent can be holding."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._files: OrderedDict[str, OpenFile] = OrderedDict()
