"""Writing to object stores (S3, GCS, Azure): whole files that appear at once, listed, compared and deleted."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from vitscale.config import DataError
from vitscale.data.storage.object_store import ObjectStorage, Timeouts
from vitscale.data.storage.retry import REAL_CLOCK, Clock, GaveUpError, RetryPolicy, retry
from vitscale.data.storage.store_address import CREDENTIALS
from vitscale.data.storage.store_errors import RefusedError, classify, explain
from vitscale.data.types import UnreachableDataError

T = TypeVar("T")

PART_BYTES = 8 << 20
"""Of a file that is sent in parts. Four parts are on their way at a time, so that training keeps its share of the network."""

_PARTS_AT_ONCE = 4
_MAX_PARTS = 9000  # S3 and GCS take 10,000
_DIGEST = "sha256"
_TIMEOUTS = Timeouts(stall=120.0, request=300.0)  # no byte of an answer comes before a whole part has been sent


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """What the store knows of a file: its size, and the sha256 that its sender gave along, if any."""

    num_bytes: int
    sha256: str | None


class ObjectWriter(ObjectStorage):
    """An `ObjectStorage` that can be written to. A file appears whole or not at all, whatever happens on the way.

    Requests that fail for the moment are repeated: each part of a large file by itself. `clock` waits between tries.
    """

    def __init__(
        self,
        root: str,
        *,
        policy: RetryPolicy | None = None,
        clock: Clock = REAL_CLOCK,
        timeouts: Timeouts = _TIMEOUTS,
        part_bytes: int = PART_BYTES,
    ) -> None:
        super().__init__(root, policy=policy, timeouts=timeouts)
        if self._address.scheme in ("http", "https"):
            raise DataError(f"{self.root}: an HTTP server cannot be written to. Give a bucket: s3://bucket/prefix, gs:// or az://.")
        self._clock = clock
        self._part_bytes = part_bytes
        self._writing_store: Any = None

    def put(self, name: str, content: Callable[[], Iterable[bytes]], *, num_bytes: int, sha256: str) -> None:
        """Write the file `name`, replacing what is there, and note its sha256 with it.

        `content` gives the bytes from the start, anew for every try; what it raises ends the upload, of which nothing is then
        to be seen. Raises `DataError`; `UnreachableDataError` where another try may do.
        """
        if num_bytes <= self._part_bytes:
            self._write(
                name, lambda store: self._obstore.put(store, name, b"".join(content()), attributes={_DIGEST: sha256}, use_multipart=False)
            )
            return
        part_bytes = max(self._part_bytes, -(-num_bytes // _MAX_PARTS))
        self._write(
            name,
            lambda store: self._obstore.put(
                store, name, iter(content()), attributes={_DIGEST: sha256}, chunk_size=part_bytes, max_concurrency=_PARTS_AT_ONCE
            ),
        )

    def stored(self, name: str) -> StoredObject | None:
        """What the store knows of a file; None where there is none. Raises `DataError`."""
        try:
            answer = self._request(name, lambda store: self._obstore.get(store, name, options={"head": True}))
        except RefusedError as refused:
            if refused.status == 404:
                return None
            raise self._explained(name, refused) from None
        return StoredObject(num_bytes=int(answer.meta["size"]), sha256=answer.attributes.get(_DIGEST))

    def list_sizes(self, folder: str | None = None) -> dict[str, int]:
        """Bytes of every file below the root, or below a folder in it, by name. Raises `DataError`."""
        try:
            pages = self._request("", lambda store: list(self._obstore.list(store, folder)))
        except RefusedError as refused:
            raise self._explained("", refused) from None
        return {file["path"]: int(file["size"]) for page in pages for file in page}

    def delete(self, names: Sequence[str]) -> None:
        """Delete files, in no order; one that is not there is no error. Raises `DataError`."""
        if names:
            self._write("", lambda store: self._delete(store, names))

    def _delete(self, store: Any, names: Sequence[str]) -> None:
        try:
            self._obstore.delete(store, list(names))
        except FileNotFoundError:  # by whose report others may be left
            for name in names:
                try:
                    self._obstore.delete(store, name)
                except FileNotFoundError:
                    continue

    def _write(self, name: str, request: Callable[[Any], T]) -> T:
        store = self._connected_for_writing()

        def attempt() -> T:
            try:
                return request(store)
            except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
                raise classify(error) from None

        try:
            return retry(attempt, policy=self._policy, on_retry=lambda: self._counters.add(retries=1), clock=self._clock)
        except GaveUpError as error:
            raise UnreachableDataError(
                f"{self._place(name)}: could not be written: {error}. Check the network, the endpoint and the state of the store."
            ) from None
        except RefusedError as refused:
            raise DataError(self._explained_write(name, refused)) from None

    def _connected_for_writing(self) -> Any:
        """A client that repeats each request by itself: the others of a file in parts need not be sent again."""
        reading = self._connected()
        if self._writing_store is None:
            pauses = {
                "init_backoff": timedelta(seconds=self._policy.first_pause_seconds),
                "max_backoff": timedelta(seconds=self._policy.longest_pause_seconds),
                "base": 2,
            }
            self._writing_store = type(reading)(
                self._address.bucket,
                prefix=self._address.prefix or None,
                client_options=reading.client_options,
                retry_config={
                    "max_retries": self._policy.num_tries - 1,
                    "retry_timeout": timedelta(seconds=self._policy.total_seconds),
                    "backoff": pauses,
                },
            )
        return self._writing_store

    def _explained_write(self, name: str, refused: RefusedError) -> str:
        if refused.status in (401, 403) and refused.code != "NoCredentials":
            variables = CREDENTIALS[self._address.scheme]
            return (
                f"{self._place(name)}: the store refused the credentials of the environment ({refused.answer}). Check that they are"
                f" valid and may write and delete here: {variables}."
            )
        return explain(refused, address=self._address, place=self._place(name))
