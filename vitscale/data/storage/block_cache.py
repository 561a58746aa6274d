"""A cache of blocks on a local disk, bounded in bytes, least recently used out, shared by any number of processes.

Whatever goes wrong with it (a full disk, a torn or flipped file, a writer that was killed) is a miss and never wrong data.
"""

import contextlib
import fcntl
import logging
import os
import re
import secrets
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from vitscale.config import OPERATIONAL, Config
from vitscale.data.storage.block_file import encode_block, read_block

_LOG = logging.getLogger(__name__)

_FOLDER_NAME = re.compile(r"[0-9a-f]{2}")
_BLOCK_NAME = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{16}\.tmp)?")
_USAGE_NAME = "usage"
_USAGE = struct.Struct("<QI")
# An eviction goes this share below the bound, so that the scan it needs is paid once for many blocks.
_SLACK = 20
_LOCK_TRIES = 5
_LOCK_PAUSE_SECONDS = 0.001
_PAUSE_AFTER_FAILURE_SECONDS = 60.0


class CacheConfig(Config):
    """Where blocks of a data set are kept on this machine, for data that is far away."""

    path: str = Field(min_length=1, json_schema_extra=OPERATIONAL)
    """Folder on a local disk. All processes of a machine, and runs on other data sets, may share one."""
    max_gib: float = Field(ge=0.0625, json_schema_extra=OPERATIONAL)
    """Bytes that the folder may hold, in GiB; the blocks used longest ago are removed beyond it."""

    @property
    def max_bytes(self) -> int:
        """The bound in bytes."""
        return int(self.max_gib * 2**30)


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A file of the cache, as the scan finds it."""

    used_ns: int
    num_bytes: int
    path: str


class BlockCache:
    """Blocks by key (32 bytes). Picklable; for threads, forks and any number of processes at once.

    A block begins as a temporary file of its full size, made while a shared count of bytes is raised under a file lock, so that
    what is written and what is only promised stay within `max_bytes` together. When they would not, the folder is scanned (which
    also corrects the count after a kill) and the blocks used longest ago go. Blocks appear by an atomic rename; a read does not
    lock.
    """

    def __init__(self, folder: str | Path, *, max_bytes: int) -> None:
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._has_warned = False
        self._resume_at = 0.0

    def get(self, key: bytes, *, length: int, first: int, stop: int) -> memoryview | None:
        """Bytes [first, stop) of the block of `length` bytes; None where it is not there or not whole."""
        path = self._path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            data = read_block(descriptor, key=key, length=length, first=first, stop=stop)
            if data is not None:
                _touch(descriptor)
        except OSError:
            data = None
        finally:
            os.close(descriptor)
        if data is None:
            self.drop(key)
        return data

    def put(self, key: bytes, payload: bytes | memoryview) -> bool:
        """Keep a block. False when the disk did not let us, which is logged once; then a minute passes before another try."""
        if time.monotonic() < self._resume_at:
            return True
        data = encode_block(payload, key=key)
        path = self._path(key)
        try:
            os.makedirs(path.parent, mode=0o700, exist_ok=True)
            temporary = self._reserve(len(data), path=path)
            if temporary is not None:
                self._write(temporary, data, path=path)
        except OSError as error:
            self._pause(error)
            return False
        return True

    def drop(self, key: bytes) -> None:
        """Forget a block."""
        self._remove(self._path(key))

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (str(self._folder), self._max_bytes)

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self._folder / name[:2] / name

    def _reserve(self, num_bytes: int, *, path: Path) -> Path | None:
        """A file of `num_bytes` to write the block to, evicting for it. None where the block is there already, too big, or the
        lock is busy."""
        if num_bytes > self._max_bytes:
            return None
        with self._locked() as usage:
            if usage is None or path.exists():
                return None
            used = _read_usage(usage)
            if used is None or used + num_bytes > self._max_bytes:
                used = self._evict(num_bytes)
            # Before the file is made: a kill in between leaves the count too high, which the next scan corrects.
            _write_usage(usage, used + num_bytes)
            temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
            try:
                _create(temporary, num_bytes)
            except OSError:
                _write_usage(usage, used)
                raise
            return temporary

    def _write(self, temporary: Path, data: bytes, *, path: Path) -> None:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CLOEXEC)
            try:
                written = 0
                while written < len(data):
                    written += os.write(descriptor, memoryview(data)[written:])
                _touch(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, path)
        except FileNotFoundError:
            pass  # evicted as it was being written, and counted out by who did that; or someone removed the folder
        except OSError:
            self._remove(temporary)
            raise

    def _remove(self, path: Path) -> None:
        """Delete a file and count it out. Where the lock is busy the count stays too high, until the next scan corrects it: one
        that is under way may have counted the file or not."""
        with contextlib.suppress(OSError), self._locked() as usage:
            num_bytes = path.stat().st_size
            path.unlink()
            used = None if usage is None else _read_usage(usage)
            if usage is not None and used is not None:
                _write_usage(usage, max(0, used - num_bytes))

    def _evict(self, num_bytes: int) -> int:
        """Remove what was used longest ago, if room is short, and return the bytes that are left. Holds the lock."""
        entries = self._scan()
        used = sum(entry.num_bytes for entry in entries)
        if used + num_bytes <= self._max_bytes:
            return used
        target = self._max_bytes - max(num_bytes, self._max_bytes // _SLACK)
        for entry in sorted(entries, key=lambda entry: entry.used_ns):
            if used <= target:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
            used -= entry.num_bytes
        return used

    def _scan(self) -> list[_Entry]:
        """Our files; whatever else lies in the folder is neither counted nor touched."""
        entries = []
        for folder in os.scandir(self._folder):
            if not _FOLDER_NAME.fullmatch(folder.name) or not folder.is_dir(follow_symlinks=False):
                continue
            for file in os.scandir(folder.path):
                if not _BLOCK_NAME.fullmatch(file.name):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    entries.append(_Entry(used_ns=status.st_mtime_ns, num_bytes=status.st_size, path=file.path))
        return entries

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int | None]:
        """The descriptor of the shared count, locked; None while another process evicts: nobody waits for the disk to be tidied."""
        descriptor = os.open(self._folder / _USAGE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        is_locked = _try_lock(descriptor)
        try:
            yield descriptor if is_locked else None
        finally:
            if is_locked:
                # Closing alone would not do: a child forked meanwhile shares the lock, and would keep it as long as it lives.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _pause(self, error: OSError) -> None:
        self._resume_at = time.monotonic() + _PAUSE_AFTER_FAILURE_SECONDS
        if not self._has_warned:
            self._has_warned = True
            _LOG.warning(
                "%s: the cache of data blocks cannot be written (%s). The run goes on and reads from the source; "
                "make room or give data.cache another path.",
                self._folder,
                error.strerror,
            )


def _restore(folder: str, max_bytes: int) -> BlockCache:
    return BlockCache(folder, max_bytes=max_bytes)


def _create(path: Path, num_bytes: int) -> None:
    """A file of zeros that counts with all its bytes in a scan of another process, and takes no room yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, num_bytes)
        _touch(descriptor)  # the kernel stamps files by a clock that lags behind ours by milliseconds
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)


def _touch(descriptor: int) -> None:
    """Note the use of a block. The clock orders evictions and nothing else; a folder that is read-only evicts nothing."""
    now = time.time_ns()
    with contextlib.suppress(OSError):
        os.utime(descriptor, ns=(now, now))


def _try_lock(descriptor: int) -> bool:
    for attempt in range(_LOCK_TRIES):
        if attempt:
            time.sleep(_LOCK_PAUSE_SECONDS)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _read_usage(descriptor: int) -> int | None:
    """The shared count; None where it is new or torn."""
    raw = os.pread(descriptor, _USAGE.size, 0)
    if len(raw) < _USAGE.size:
        return None
    used, crc = _USAGE.unpack(raw)
    return int(used) if zlib.crc32(raw[:8]) == crc else None


def _write_usage(descriptor: int, used: int) -> None:
    raw = struct.pack("<Q", used)
    os.pwrite(descriptor, raw + struct.pack("<I", zlib.crc32(raw)), 0)
