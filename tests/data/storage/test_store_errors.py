"""What the errors of stores mean, as a table of their texts; and that no text of theirs is shown."""

import pytest

from vitscale.data.storage.retry import TransientError
from vitscale.data.storage.store_address import parse_address
from vitscale.data.storage.store_errors import RefusedError, classify, explain

_ADDRESS = parse_address("s3://bucket/set")


def _answer(status: int, code: str | None = None) -> Exception:
    body = f"<Error><Code>{code}</Code><AWSAccessKeyId>AKIAHUNTER2</AWSAccessKeyId></Error>" if code else ""
    return OSError(f"Error performing GET https://x/y?sig=hunter2 - Server returned non-2xx status code: {status} Whatever: {body}")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (_answer(503, "SlowDown"), "HTTP 503 (SlowDown)"),
        (_answer(503), "HTTP 503"),
        (_answer(500, "InternalError"), "HTTP 500 (InternalError)"),
        (_answer(429), "HTTP 429"),
        (_answer(408), "HTTP 408"),
        (_answer(400, "RequestTimeout"), "HTTP 400 (RequestTimeout)"),
        (OSError("HTTP error: error sending request\n kind: Timeout,"), "a time-out"),
        (OSError("HTTP error: error sending request\n kind: Connect,"), "a connection that could not be made"),
        (OSError("HTTP error: request or response body error\n kind: UnexpectedEof,"), "a body cut short"),
        (OSError("anything else"), "a broken connection"),
    ],
)
def test_failures_that_may_pass(error: Exception, words: str) -> None:
    result = classify(error)
    assert isinstance(result, TransientError)
    assert str(result) == words


@pytest.mark.parametrize(
    ("error", "paragraph"),
    [
        (_answer(404, "NoSuchBucket"), "there is no bucket or container 'bucket'"),
        (_answer(404, "NoSuchKey"), "no such file"),
        (FileNotFoundError("gone"), "no such file"),
        (_answer(403, "InvalidAccessKeyId"), "refused the credentials of the environment (HTTP 403, InvalidAccessKeyId)"),
        (_answer(403, "SignatureDoesNotMatch"), "(HTTP 403, SignatureDoesNotMatch)"),
        (_answer(403, "AccessDenied"), "(HTTP 403, AccessDenied), or the file is not there and they may not list the bucket. Check"),
        (_answer(401), "refused the credentials of the environment (HTTP 401)"),
        (_answer(400, "ExpiredToken"), "refused the credentials of the environment (HTTP 400, ExpiredToken)"),
        (_answer(301, "PermanentRedirect"), "redirects elsewhere (HTTP 301, PermanentRedirect). Check region"),
        (_answer(416, "InvalidRange"), "cut short"),
        (_answer(400), "refused the request (HTTP 400)"),
        (OSError("kind: Connect,\n error: InvalidCertificate(UnknownIssuer)"), "certificate is not one that this machine trusts"),
        (OSError("NotPartial"), "does not answer ranges"),
        (ValueError("bad path"), "not a name that this store can hold"),
    ],
)
def test_answers_that_stay(error: Exception, paragraph: str) -> None:
    result = classify(error)
    assert isinstance(result, RefusedError)
    text = explain(result, address=_ADDRESS, place="s3://bucket/set/a.tar")
    assert text.startswith("s3://bucket/set/a.tar: ")
    assert paragraph in text
    assert text.endswith(".") or "AWS_SKIP_SIGNATURE" in text
    assert "hunter2" not in text.lower()


def test_credentials_that_only_a_cloud_s_machine_could_have() -> None:
    asked = "Error performing PUT http://169.254.169.254/latest/api/token"
    silent = classify(OSError(f"{asked} - HTTP error: error sending request kind: Timeout"))
    assert isinstance(silent, TransientError)
    assert "no credentials in the environment" in str(silent)
    assert silent.num_tries is not None
    refused = classify(OSError(f"{asked} - Server returned non-2xx status code: 404 Not Found"))
    assert isinstance(refused, RefusedError)
    assert "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in explain(refused, address=_ADDRESS, place="s3://bucket/set")


@pytest.mark.parametrize(
    ("error", "is_loss"),
    [
        (_answer(404, "NoSuchKey"), True),
        (_answer(404), True),
        (FileNotFoundError("gone"), True),
        (_answer(410), True),
        (_answer(416, "InvalidRange"), True),
        (_answer(404, "NoSuchBucket"), False),
        (_answer(404, "ContainerNotFound"), False),
        (_answer(403, "AccessDenied"), False),
        (_answer(400, "ExpiredToken"), False),
        (_answer(401), False),
        (_answer(301, "PermanentRedirect"), False),
        (_answer(400), False),
        (OSError("kind: Connect,\n error: InvalidCertificate(UnknownIssuer)"), False),
        (OSError("NotPartial"), False),
        (ValueError("bad path"), False),
    ],
)
def test_only_a_file_that_is_not_there_or_too_short_is_lost(error: Exception, is_loss: bool) -> None:
    result = classify(error)
    assert isinstance(result, RefusedError)
    assert result.is_loss is is_loss
