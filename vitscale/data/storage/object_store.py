"""Data sets in object stores (S3, GCS, Azure) and on HTTP servers, read by ranges through obstore behind our own retry."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from vitscale.config import DataError
from vitscale.data.storage.io_counters import IoCounters
from vitscale.data.storage.retry import GaveUpError, RetryPolicy, TransientError, retry
from vitscale.data.storage.store_address import CREDENTIALS, Address, allow_http, parse_address
from vitscale.data.storage.store_errors import RefusedError, classify, explain
from vitscale.data.types import StoredFile, UnreachableDataError

T = TypeVar("T")

_runtime_process: int | None = None
"""The process in which obstore began to run: its threads do not survive a fork, and a request without them never returns."""


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """When a request counts as failed, in seconds."""

    connect: float = 5.0
    stall: float = 15.0
    """No byte came for this long."""
    request: float = 120.0
    """The whole answer did not come for this long."""


class ObjectStorage:
    """Files below an address such as `s3://bucket/prefix`. Credentials come from the environment and appear nowhere.

    For threads and for other processes (by pickle). After a fork of a process that has read, reading fails with an error
    instead of hanging.
    """

    def __init__(self, root: str, *, policy: RetryPolicy | None = None, timeouts: Timeouts | None = None) -> None:
        self._address = parse_address(root)
        self._obstore = _import_obstore(self._address)
        self._policy = policy or RetryPolicy()
        self._timeouts = timeouts or Timeouts()
        self._counters = IoCounters("reads", "bytes_read", "retries")
        self._store: Any = None

    @property
    def root(self) -> str:
        return self._address.url

    def size(self, name: str) -> int:
        try:
            return self._size(name)
        except RefusedError as refused:
            raise self._explained(name, self._reason(name) or refused) from None

    def read_file(self, name: str) -> bytes:
        return self._read(name, lambda store: self._whole(store, name))

    def read_range(self, name: str, *, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        return self._read(name, lambda store: self._range(store, name, offset=offset, length=length))

    def read_again(self, name: str, *, offset: int, length: int) -> bytes:
        self._counters.add(retries=1)
        return self.read_range(name, offset=offset, length=length)

    def list_files(self, suffix: str) -> list[StoredFile]:
        if self._address.scheme in ("http", "https"):
            raise DataError(
                f"{self.root}: an HTTP server cannot be asked which files it holds. Give a bucket, or a folder that holds copies of them."
            )
        try:
            found = self._request("", lambda store: [file for page in self._obstore.list(store) for file in page])
        except RefusedError as refused:
            raise self._explained("", refused) from None
        files = (
            StoredFile(name=file["path"], size=int(file["size"]), version=file["e_tag"] or file["last_modified"].isoformat())
            for file in found
            if file["path"].endswith(suffix)
        )
        return sorted(files, key=lambda file: file.name)

    def io_counters(self) -> dict[str, int]:
        return self._counters.values()

    def __reduce__(self) -> tuple[Callable[..., "ObjectStorage"], tuple[str, RetryPolicy, Timeouts]]:
        return _restore, (self._address.url, self._policy, self._timeouts)

    def _read(self, name: str, request: Callable[[Any], bytes]) -> bytes:
        try:
            data = self._request(name, request)
        except RefusedError as refused:
            raise self._explained(name, refused) from None
        self._counters.add(reads=1, bytes_read=len(data))
        return data

    def _request(self, name: str, request: Callable[[Any], T]) -> T:
        """The result of a request that is safe to repeat, and is while it fails for the moment. Raises `RefusedError`,
        `UnreachableDataError`."""
        store = self._connected()

        def attempt() -> T:
            try:
                return request(store)
            except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
                raise classify(error) from None

        try:
            return retry(attempt, policy=self._policy, on_retry=lambda: self._counters.add(retries=1))
        except GaveUpError as error:
            raise UnreachableDataError(
                f"{self._place(name)}: could not be read: {error}. Check the network, the endpoint and the state of the store, then "
                "start the same command again."
            ) from None

    def _whole(self, store: Any, name: str) -> bytes:
        answer = self._obstore.get(store, name)
        return _complete(bytes(answer.bytes()), length=int(answer.meta["size"]))

    def _range(self, store: Any, name: str, *, offset: int, length: int) -> bytes:
        data = bytes(self._obstore.get_range(store, name, start=offset, length=length))
        # A short answer that is well formed: either the file ends here, or a proxy on the way passed on a cut body.
        if len(data) != length and self._obstore.head(store, name)["size"] < offset + length:
            raise RefusedError(416)
        return _complete(data, length=length)

    def _size(self, name: str) -> int:
        return int(self._request(name, lambda store: self._obstore.head(store, name)["size"]))

    def _reason(self, name: str) -> RefusedError | None:
        """Why a file cannot be asked for its size: the answer to a HEAD has no body to say so, that to a GET has."""
        try:
            self._request(name, lambda store: self._obstore.get_range(store, name, start=0, length=1))
        except RefusedError as refused:
            return refused
        return None

    def _connected(self) -> Any:
        """The store's client, made once in each process."""
        global _runtime_process
        if _runtime_process is None:
            _runtime_process = os.getpid()
        if _runtime_process != os.getpid():
            raise UnreachableDataError(
                f"{self.root}: this process was forked from one that had read from an object store, and the client's threads do not "
                "survive that. Start processes that read with the start method spawn or forkserver."
            )
        if self._store is None:
            self._store = _connect(self._address, self._obstore, timeouts=self._timeouts)
        return self._store

    def _place(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def _explained(self, name: str, refused: RefusedError) -> DataError:
        """Only what says that the bytes are gone is a loss: credentials that expire or a bucket out of reach leave them whole."""
        kind = DataError if refused.is_loss else UnreachableDataError
        return kind(explain(refused, address=self._address, place=self._place(name)))


def _restore(root: str, policy: RetryPolicy, timeouts: Timeouts) -> ObjectStorage:
    return ObjectStorage(root, policy=policy, timeouts=timeouts)


def _import_obstore(address: Address) -> ModuleType:
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise DataError(
            f"{address.url}: reading from object stores and HTTP servers needs the package obstore, which is not installed. "
            "Install it with `pip install 'vitscale[s3]'`."
        ) from None
    return obstore


def _connect(address: Address, obstore: ModuleType, *, timeouts: Timeouts) -> Any:
    """A client that leaves all repeating to us."""
    settings: dict[str, Any] = {
        "client_options": {
            "allow_http": allow_http(address),
            "connect_timeout": _milliseconds(timeouts.connect),
            "read_timeout": _milliseconds(timeouts.stall),
            "timeout": _milliseconds(timeouts.request),
        },
        "retry_config": {"max_retries": 0},
    }
    stores = {"s3": obstore.store.S3Store, "gs": obstore.store.GCSStore, "az": obstore.store.AzureStore}
    try:
        if address.scheme in stores:
            return stores[address.scheme](address.bucket, prefix=address.prefix or None, **settings)
        return obstore.store.HTTPStore.from_url(address.url, **settings)
    except (obstore.exceptions.BaseError, ValueError, OSError):
        # The error's own text may quote the setting that it dislikes, which may be a key.
        remedy = f"Set {CREDENTIALS[address.scheme]}" if address.scheme in CREDENTIALS else "Check the address"
        raise UnreachableDataError(
            f"{address.url}: the settings for this store in the environment are incomplete or wrong. {remedy}."
        ) from None


def _milliseconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def _complete(data: bytes, *, length: int) -> bytes:
    if len(data) != length:
        raise TransientError(f"a body cut short ({len(data)} of {length} bytes)")
    return data
