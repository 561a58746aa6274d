"""What the errors of object stores mean: which may pass, which stay, and how a user mends the latter."""

import re

from vitscale.data.storage.retry import TransientError
from vitscale.data.storage.store_address import CREDENTIALS, Address

_TRANSIENT_STATUS = frozenset({408, 425, 429})
# S3 answers 400 with RequestTimeout to a connection that idled; it passes like any other time-out.
_TRANSIENT_CODES = frozenset({"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "ServerBusy", "OperationTimedOut"})
_CREDENTIAL_CODES = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed"})
_BUCKET_CODES = frozenset({"NoSuchBucket", "ContainerNotFound"})
_LOSS_STATUS = frozenset({404, 410, 416})

# Where clouds hand credentials to their own machines; asked when the environment holds none, and silent everywhere else.
_METADATA_HOSTS = re.compile(r"https?://(169\.254\.169\.254|169\.254\.170\.2|metadata\.google\.internal|metadata)\b")
_METADATA_TRIES = 4


class RefusedError(Exception):
    """An answer that will be the same at every try: the HTTP status and the store's own word for the reason, where known."""

    def __init__(self, status: int | None, code: str | None = None) -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code

    @property
    def is_loss(self) -> bool:
        """Whether it says that bytes of the file are gone; all else is mended elsewhere than in the data."""
        return self.status in _LOSS_STATUS and self.code not in _BUCKET_CODES

    @property
    def answer(self) -> str:
        """For messages."""
        return f"HTTP {self.status}" + (f", {self.code}" if self.code else "")


def classify(error: Exception) -> TransientError | RefusedError:
    """Tell failures that may pass from answers that stay. obstore gives the status and the server's words only as text."""
    text = str(error)
    status = int(found[1]) if (found := re.search(r"status code: (\d{3})", text)) else None
    code = found[1] if (found := re.search(r"<Code>([A-Za-z]{1,64})</Code>", text)) else None
    if _METADATA_HOSTS.search(text):
        reason = "no credentials in the environment, and none from the cloud's metadata service"
        return RefusedError(401, "NoCredentials") if status in (403, 404) else TransientError(reason, num_tries=_METADATA_TRIES)
    if code in _TRANSIENT_CODES or (status is not None and (status >= 500 or status in _TRANSIENT_STATUS)):
        return TransientError(f"HTTP {status}" + (f" ({code})" if code else ""))
    if status is not None:
        return RefusedError(status, code)
    if isinstance(error, FileNotFoundError):
        return RefusedError(404)
    if "NotPartial" in text or "RangeNotSupported" in text:
        return RefusedError(200)
    if "InvalidCertificate(" in text:
        return RefusedError(None, "InvalidCertificate")
    if isinstance(error, ValueError) or "InvalidPath" in type(error).__name__:
        return RefusedError(None)
    return TransientError(_transport_failure(text))


def explain(refused: RefusedError, *, address: Address, place: str) -> str:
    """One paragraph: what, where, how to mend it. Shows nothing of the server's text but its one-word code."""
    status = refused.status
    if refused.code in _BUCKET_CODES:
        remedy = "Check its name, and the endpoint and region in the environment"
        return f"{place}: there is no bucket or container {address.bucket!r}. {remedy}."
    if refused.code == "InvalidCertificate":
        remedy = "Check the endpoint's name, or add the authority that signed it to the certificates of this system"
        return f"{place}: the server's certificate is not one that this machine trusts. {remedy}."
    if status in (401, 403) or refused.code in _CREDENTIAL_CODES:
        return f"{place}: {_about_credentials(refused, address=address)}."
    if status is not None and 300 <= status < 400:
        return f"{place}: the server redirects elsewhere ({refused.answer}). Check region and endpoint in the environment."
    known = {
        None: "not a name that this store can hold. Check the data set's address",
        200: "this server does not answer ranges of a file, which reading needs. Use a server that does, such as nginx",
        410: "no longer there. Check the data set's address, restore the file from a copy or pack the data set again",
        404: "no such file. Check the data set's address, restore the file from a copy or pack the data set again",
        416: "cut short, the file ends before the bytes that were asked for. Restore it from a copy or pack the data set again",
    }
    other = f"the server refused the request ({refused.answer}). Check the address, and endpoint and region in the environment"
    return f"{place}: {known.get(status, other)}."


def _about_credentials(refused: RefusedError, *, address: Address) -> str:
    variables = CREDENTIALS.get(address.scheme)
    if variables is None:
        return f"the server lets nobody read this without a password ({refused.answer}). Make it readable, or use an object store"
    if refused.code == "NoCredentials":
        return f"the environment holds no credentials for this store. Set {variables}"
    # What S3 answers, lest names be guessed.
    or_missing = ", or the file is not there and they may not list the bucket" if refused.code == "AccessDenied" else ""
    return (
        f"the store refused the credentials of the environment ({refused.answer}){or_missing}. "
        f"Check that they are valid and may read here: {variables}"
    )


def _transport_failure(text: str) -> str:
    """What went wrong below HTTP, in our words: the original may show more of the address than we want to."""
    kinds = {"Timeout": "a time-out", "Connect": "a connection that could not be made", "UnexpectedEof": "a body cut short"}
    return next((words for kind, words in kinds.items() if re.search(rf"\b{kind}\b", text)), "a broken connection")
