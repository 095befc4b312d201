"""Limits of a tenant, by settings of ours: `timelines_max`, and `stored_bytes_max` over all of its timelines.

At the limit of timelines none can be made. At that of bytes no timeline is made that brings bytes with it (a branch
brings none), and WAL sources stand still, tell so, and go on once the limit is raised or something was deleted.

Counted are layers that indices name and open layers; in a tenant with the object repository, its files. Not counted are
offloaded timelines, whose indices are not read. A limit is looked at between batches of WAL, so it may be passed by a
few layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pageserver.clock import Clock
from pageserver.config import TenantSettings
from pageserver.errors import PreconditionFailedError
from pageserver.timeline import Timeline

_COUNT_SECONDS_MIN = 1.0


class LimitReachedError(PreconditionFailedError):
    """412: the tenant has as much as its settings allow."""


class TenantLimits:
    """The limits of one attached shard."""

    def __init__(
        self,
        *,
        settings: Callable[[], TenantSettings],
        timelines: Callable[[], Iterable[Timeline]],
        count_timelines: Callable[[], int],
        files: Path | None,
        clock: Clock,
    ) -> None:
        """`files` is where a tenant without layers keeps its values."""
        self._settings = settings
        self._timelines = timelines
        self._count_timelines = count_timelines
        self._files = files
        self._clock = clock
        self._bytes = 0
        self._counted_at: float | None = None

    def check_timelines(self) -> None:
        """Raise LimitReachedError if no timeline may be added."""
        limit, count = self._settings().timelines_max, self._count_timelines()
        if limit is not None and count >= limit:
            raise LimitReachedError(
                f"the tenant has {count} timelines, and may have {limit}",
                hint="delete some, or raise the tenant's setting timelines_max",
                limit=limit,
            )

    def check_bytes(self) -> None:
        """Raise LimitReachedError if nothing may be added."""
        reason = self.pause_reason()
        if reason is not None:
            raise LimitReachedError(reason)

    def pause_reason(self) -> str | None:
        """Return why nothing more may be ingested, None if it may. Cheap enough for every batch."""
        limit = self._settings().stored_bytes_max
        if limit is None or (stored := self.stored_bytes()) < limit:
            return None
        return (
            f"the tenant holds {stored} bytes, and may hold {limit}; HINT: delete timelines, or raise the tenant's "
            "setting stored_bytes_max"
        )

    def stored_bytes(self) -> int:
        """Return what the tenant holds, counted at most once a second."""
        now = self._clock.monotonic_seconds()
        if self._counted_at is None or now - self._counted_at >= _COUNT_SECONDS_MIN:
            self._counted_at, self._bytes = now, self._count()
        return self._bytes

    def _count(self) -> int:
        files = 0 if self._files is None else _size_of(self._files)
        return files + sum(timeline.stored_bytes() for timeline in self._timelines())


def _size_of(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total
