"""What requests to a store cost: counts and times by kind and result, for `/metrics` (metrics.md: all kinds of stores
use the names `remote_storage_s3_*`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from enum import Enum

from pageserver.counts import Histogram
from pageserver.errors import NotFoundError

BOUNDS_SECONDS = (0.0001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 50.0, 100.0)


class RequestKind(Enum):
    """Kinds of requests, by the text of the metric's label."""

    GET = "get_object"
    PUT = "put_object"
    DELETE = "delete_object"
    LIST = "list_objects"
    COPY = "copy_object"
    HEAD = "head_object"
    LIST_VERSIONS = "list_versions"
    TIME_TRAVEL = "time_travel_recover"

    @property
    def writes(self) -> bool:
        return self in (
            RequestKind.PUT,
            RequestKind.DELETE,
            RequestKind.COPY,
            RequestKind.TIME_TRAVEL,
        )


class RequestResult(Enum):
    OK = "ok"
    ERROR = "err"
    CANCELLED = "cancelled"


class RequestStats:
    """Counters of one store. An absent object is a good answer ("404 counts as ok", remote-storage.md 17)."""

    def __init__(self) -> None:
        self.requests = {(kind, result): Histogram(BOUNDS_SECONDS) for kind in RequestKind for result in RequestResult}
        self.waits = {kind: Histogram(BOUNDS_SECONDS) for kind in RequestKind}
        self.cancelled_waits = dict.fromkeys(RequestKind, 0)
        self.deleted_objects = 0

    def count_deleted(self, count: int) -> None:
        self.deleted_objects += count

    @contextlib.contextmanager
    def wait(self, kind: RequestKind) -> Iterator[None]:
        """Measure the wait for a permit."""
        started = time.monotonic()
        try:
            yield
        except asyncio.CancelledError:
            self.cancelled_waits[kind] += 1
            raise
        self.waits[kind].observe(time.monotonic() - started)

    @contextlib.contextmanager
    def request(self, kind: RequestKind) -> Iterator[None]:
        """Measure a request."""
        started = time.monotonic()
        result = RequestResult.ERROR
        try:
            yield
            result = RequestResult.OK
        except NotFoundError:
            result = RequestResult.OK
            raise
        except asyncio.CancelledError:
            result = RequestResult.CANCELLED
            raise
        finally:
            self.requests[kind, result].observe(time.monotonic() - started)
