"""From errors to answers: one table (http-api.md 3).

WHY 503 and not 404 for a tenant in between: a 404 tells the caller that the tenant is not here, and it might attach it
somewhere else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pageserver.config import InvalidSettingError
from pageserver.errors import (
    ConflictError,
    CorruptDataError,
    InternalError,
    LsnTimeoutError,
    NotBuiltError,
    NotFoundError,
    PageServerError,
    PreconditionFailedError,
    RequestError,
    StoppedError,
    UnavailableError,
)
from pageserver.remote.remote_timeline import ArchivalTimeoutError
from pageserver.tenant import BranchRefusedError, CreationInProgressError, DifferentParametersError, FencedError


class ApiError(Exception):
    """An answer other than success, decided by a handler itself. `body` replaces the usual `{"msg": …}`."""

    def __init__(self, status: int, message: str, *, body: Any = None, has_body: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.body = body if has_body else {"msg": message}


def bad_request(text: str) -> ApiError:
    """Return a 400; its `msg` carries the text in quotes, as Neon's debug form does."""
    return ApiError(400, json.dumps(text, ensure_ascii=False))


def not_built(what: str) -> ApiError:
    """Return a 501 for a route of the specification that this release does not have yet."""
    return ApiError(501, f"{what} is not implemented yet")


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    form: str


# The first kind that fits counts, so leaves come before their kinds.
_ANSWERS: tuple[tuple[type[Exception], _Answer], ...] = (
    (CreationInProgressError, _Answer(429, "{}")),
    (BranchRefusedError, _Answer(406, "{}")),
    (DifferentParametersError, _Answer(409, "{}")),
    (NotBuiltError, _Answer(501, "{}")),
    (NotFoundError, _Answer(404, "NotFound: {}")),
    (ConflictError, _Answer(409, "Conflict: {}")),
    (PreconditionFailedError, _Answer(412, "Precondition failed: {}")),
    (LsnTimeoutError, _Answer(408, "{}")),
    (ArchivalTimeoutError, _Answer(408, "{}")),
    (UnavailableError, _Answer(503, "{}")),
    (FencedError, _Answer(503, "{}")),
    (StoppedError, _Answer(503, "Shutting down")),
    (CorruptDataError, _Answer(500, "{}")),
    (InternalError, _Answer(500, "{}")),
)


def to_api_error(error: BaseException) -> ApiError:
    """Translate what a handler raised. Anything unknown is a 500 with its text; what is no Exception is a panic."""
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, Exception):
        return ApiError(500, "HTTP request handler task panicked")
    for kind, answer in _ANSWERS:
        if isinstance(error, kind):
            return ApiError(answer.status, answer.form.format(error))
    if isinstance(error, (RequestError, InvalidSettingError)):
        return bad_request(str(error))
    if isinstance(error, PageServerError):
        return ApiError(500, str(error))
    return ApiError(500, f"{type(error).__name__}: {error}")
