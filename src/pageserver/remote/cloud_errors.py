"""From `obstore`'s exceptions to ours.

`obstore` knows five kinds of answers apart (not found, exists, not modified, precondition, permission); everything else
is a GenericError. Two of its habits would be dangerous if they were taken at their word:

* any 404 is a FileNotFoundError, also the one that says "no such bucket" or, from some servers, "no such user". An
  object whose absence is believed is an index that is not read and a generation that is handed out twice, so only the
  codes for a missing *object* count as that; the answer to HEAD has no code and is never believed alone
  (`CloudStore.head` asks again with a GET).
* S3's 409 on a conditional create is an AlreadyExistsError even if nothing was created (`retry.py` reads back).

The text of an exception goes on with pages of debugging output, of which the innermost message is kept.
"""

from __future__ import annotations

import re

from obstore import exceptions

from pageserver.errors import PageServerError, RequestError
from pageserver.remote.storage import (
    ObjectExistsError,
    ObjectNotFoundError,
    StoreRefusedError,
    StoreUnavailableError,
    UnknownOutcomeError,
)

_MISSING_OBJECT_CODES = frozenset({"NoSuchKey", "BlobNotFound"})
"""Codes of a missing object: S3 and GCS; Azure."""
_MISSING_IN_BATCH = "The specified blob does not exist"
"""How Azure says it inside of a batch of deletions, where a missing container has the same code 404."""
_CODE = re.compile(r"<Code>([^<]*)</Code>|\(code: (\w+)\)")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_INNERMOST = re.compile(r'(?:message: |Custom \{\s*kind: \w+,\s*error: )"([^"]+)"')
_TIMEOUT = re.compile(r"\bkind: Timeout\b|TimedOut|operation timed out")
_REFUSED_STATUS = re.compile(r"status code: (40[0134]|501)\b")
"""What is wrong with the request, or unknown to the server. Listings have no kinds of errors but the general one:
their status tells.
"""
_PASSING_CODES = frozenset({"RequestTimeout", "IncompleteBody", "BadDigest", "OperationTimedOut"})
"""Codes of a 400 that comes from the way and not from the request."""
_STATUS = re.compile(r"status code: (\d{3} [A-Za-z ]+)")
_REFUSED = (FileNotFoundError, exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
_BAD_REQUEST = (
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
    exceptions.UnknownConfigurationKeyError,
    ValueError,
)
_TEXT_MAX = 400

CLOUD_ERRORS = (exceptions.BaseError, FileNotFoundError, ValueError, OSError)
"""What calls of `obstore` raise."""


def translate(error: Exception, *, operation: str, key: str, store: str, writes: bool) -> PageServerError:
    """Return our error for one of `CLOUD_ERRORS`; `store` names bucket and endpoint for the reader."""
    text = str(error)
    code = error_code(text)
    # An answer to HEAD has no code at all.
    tells_absence = (
        code in _MISSING_OBJECT_CODES or _MISSING_IN_BATCH in _head(text) or (code is None and operation == "head")
    )
    if isinstance(error, FileNotFoundError) and tells_absence:
        return ObjectNotFoundError(key=key)
    if isinstance(error, exceptions.AlreadyExistsError):
        return ObjectExistsError(key=key)
    if isinstance(error, _BAD_REQUEST):
        return RequestError(f"{store} cannot {operation} {key!r}: {explain(text)}", key=key)
    if isinstance(error, _REFUSED) or (_REFUSED_STATUS.search(_head(text)) and code not in _PASSING_CODES):
        return StoreRefusedError(
            f"{store} refuses to {operation} {key!r}: {explain(text)}",
            operation=operation,
            key=key,
            hint=None if "HINT:" in text else "check bucket, endpoint, region and credentials",
        )
    message = f"{store} did not {operation} {key!r}: {explain(text)}"
    return (UnknownOutcomeError if writes else StoreUnavailableError)(message, operation=operation, key=key)


def timed_out(*, operation: str, key: str, store: str, seconds: float, writes: bool) -> StoreUnavailableError:
    """Return the error of a request that we gave up."""
    message = f"{store} did not {operation} {key!r}: timeout after {seconds:g} s"
    return (UnknownOutcomeError if writes else StoreUnavailableError)(message, operation=operation, key=key)


def error_code(text: str) -> str | None:
    """Return the code that a store's answer carries, such as `NoSuchKey`."""
    match = _CODE.search(_head(text))
    return None if match is None else match[1] or match[2]


def explain(text: str) -> str:
    """Return the one line that tells what happened: status, code and message of the answer, or the innermost cause."""
    head = _head(text)
    found = (_STATUS.search(head), _CODE.search(head), _MESSAGE.search(head))
    facts = [match[1].strip() for match in found if match and match[1]]
    if facts:
        return ": ".join(dict.fromkeys(facts))[:_TEXT_MAX]
    if _TIMEOUT.search(text):
        return "timeout"
    inner = _INNERMOST.findall(text)
    line = " ".join(head.split())
    return (f"{line} ({inner[-1]})" if inner and inner[-1] not in line else line)[:_TEXT_MAX]


def _head(text: str) -> str:
    return text.partition("Debug source:")[0]
