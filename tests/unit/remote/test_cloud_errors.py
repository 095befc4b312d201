"""From the library's exceptions to ours: what is believed, what is repeated, what the reader is told."""

from __future__ import annotations

import pytest
from obstore import exceptions

from pageserver.errors import PageServerError, RequestError
from pageserver.remote import (
    ObjectExistsError,
    ObjectNotFoundError,
    StoreRefusedError,
    StoreUnavailableError,
    UnknownOutcomeError,
)
from pageserver.remote.cloud_errors import explain, translate

DEBUG = '\n\nDebug source:\nGeneric {\n    store: "S3",\n    secret: "not for the reader",\n}'


def answer(status: str, code: str | None, message: str = "as it is") -> str:
    """Return a text such as the library makes of an answer."""
    body = "" if code is None else f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return f"Error performing GET http://h/b/k in 2ms - Server returned non-2xx status code: {status}: {body}{DEBUG}"


@pytest.mark.parametrize(
    ("error", "operation", "expected"),
    [
        (FileNotFoundError(answer("404 Not Found", "NoSuchKey")), "get", ObjectNotFoundError),
        (FileNotFoundError(answer("404 Not Found", "BlobNotFound")), "get", ObjectNotFoundError),
        (FileNotFoundError(answer("404 Not Found", None)), "head", ObjectNotFoundError),
        (FileNotFoundError(answer("404 Not Found", None)), "get", StoreRefusedError),
        (FileNotFoundError(answer("404 Not Found", "NoSuchBucket")), "get", StoreRefusedError),
        (FileNotFoundError(answer("404 Not Found", "ContainerNotFound")), "get", StoreRefusedError),
        (FileNotFoundError(answer("404 Not Found", "XAdminUserNotFound")), "get", StoreRefusedError),
        (
            FileNotFoundError("Bulk delete request failed for key k: The specified blob does not exist. (code: 404)"),
            "delete",
            ObjectNotFoundError,
        ),
        (
            FileNotFoundError("Bulk delete request failed for key k: The specified container … (code: 404)"),
            "delete",
            StoreRefusedError,
        ),
        (exceptions.PermissionDeniedError(answer("403 Forbidden", "AccessDenied")), "get", StoreRefusedError),
        (exceptions.UnauthenticatedError("no key"), "get", StoreRefusedError),
        (exceptions.GenericError(answer("403 Forbidden", "AccessDenied")), "list", StoreRefusedError),
        (exceptions.GenericError(answer("400 Bad Request", "InvalidBucketName")), "list", StoreRefusedError),
        (exceptions.GenericError(answer("400 Bad Request", "RequestTimeout")), "get", StoreUnavailableError),
        (exceptions.GenericError(answer("501 Not Implemented", "NotImplemented")), "put", StoreRefusedError),
        (exceptions.GenericError(answer("503 Service Unavailable", "SlowDown")), "get", StoreUnavailableError),
        (exceptions.GenericError(answer("503 Service Unavailable", "SlowDown")), "put", UnknownOutcomeError),
        (exceptions.GenericError(answer("400 Bad Request", "RequestTimeout")), "put", UnknownOutcomeError),
        (
            exceptions.AlreadyExistsError(answer("412 Precondition Failed", "PreconditionFailed")),
            "put",
            ObjectExistsError,
        ),
        (exceptions.AlreadyExistsError(answer("409 Conflict", "ConditionalRequestConflict")), "put", ObjectExistsError),
        (exceptions.InvalidPathError("bad"), "get", RequestError),
        (exceptions.NotSupportedError("cannot"), "put", RequestError),
    ],
)
def test_answers_have_their_kinds(error: Exception, operation: str, expected: type[PageServerError]) -> None:
    ours = translate(error, operation=operation, key="k", store="S3 bucket b", writes=operation in ("put", "delete"))
    assert type(ours) is expected
    assert "not for the reader" not in str(ours)


def test_texts_say_status_code_and_message() -> None:
    assert explain(answer("403 Forbidden", "AccessDenied", "go away")) == "403 Forbidden: AccessDenied: go away"
    assert explain(answer("502 Bad Gateway", None)) == "502 Bad Gateway"
    refused = 'Generic S3 error: HTTP error: error sending request\n\nDebug source:\n… message: "Connection refused",'
    assert explain(refused) == "Generic S3 error: HTTP error: error sending request (Connection refused)"
    assert explain("Generic S3 error\n\nDebug source:\n kind: Timeout") == "timeout"
