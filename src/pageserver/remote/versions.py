"""Bringing a prefix of a versioned bucket back to how it was at a moment (remote-storage.md 15).

    list all versions ─▶ plan (pure) ─▶ copy old versions over their keys, delete keys that were not there

Nothing is lost by it: a copy is a new newest version, a deletion a marker on top. A prefix is done again as a whole
after a failure; what an earlier attempt has done is newer than `done_if_after` and is passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, Final, Protocol

from pageserver.clock import Clock
from pageserver.errors import InternalError, RequestError
from pageserver.remote.retry import DEFAULT_POLICY, retry

VERSIONS_MAX: Final = 100_000
"""Of one prefix; Neon's limit."""
_COPIES_AT_ONCE: Final = 64
_DELETIONS_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version of an object, or the marker of its deletion."""

    key: str
    version_id: str
    modified_at: datetime
    is_deletion: bool = False


class VersionedStore(Protocol):
    """A store that keeps old versions. Methods are attempted once; raises as `ObjectStorage` does."""

    async def list_versions(self, prefix: str, *, limit: int) -> list[ObjectVersion]:
        """Return the versions of all objects whose key starts with `prefix`, at most `limit`, of each key the newest
        first.
        """
        ...

    async def restore_version(self, version: ObjectVersion) -> None:
        """Copy a version over its key, with its metadata."""
        ...

    async def delete(self, keys: Iterable[str]) -> None: ...


class TimeTravelUnsupportedError(RequestError):
    """The store keeps no versions that we know to list."""

    def __init__(self) -> None:
        super().__init__("unimplemented for the configured remote storage")


class TooManyVersionsError(InternalError):
    """A prefix has more versions than one request may look at."""

    def __init__(self, *, prefix: str) -> None:
        super().__init__("too many versions in remote storage", prefix=prefix, limit=VERSIONS_MAX)


class TimeTravelCancelledError(InternalError):
    """The server stops; the same request may be repeated, with the same `done_if_after`."""

    def __init__(self) -> None:
        super().__init__("cancelled")


class NullVersionError(InternalError):
    """An object has no version: the bucket does not keep versions, or did not when it was written."""

    def __init__(self, *, key: str) -> None:
        super().__init__(
            f"object {key} has the version id 'null'",
            hint="versioning is off, or was off when the object was written: nothing was changed",
            key=key,
        )


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What to do; what is as it was, or done already, is not in it."""

    restore: tuple[ObjectVersion, ...]
    delete: tuple[str, ...]


def plan_recovery(versions: Iterable[ObjectVersion], *, travel_to: datetime, done_if_after: datetime) -> RecoveryPlan:
    """Decide for each key. `versions` are the newest first of each key, which decides between equal times.

    Raises: NullVersionError.
    """
    restore: list[ObjectVersion] = []
    delete: list[str] = []
    for key, group in groupby(sorted(versions, key=lambda version: version.key), key=lambda version: version.key):
        history = list(group)[::-1]
        history.sort(key=lambda version: version.modified_at)
        for version in history:
            if version.version_id == "null":
                raise NullVersionError(key=key)
        newest = history[-1]
        if newest.modified_at > done_if_after:
            continue
        changed = next((i for i, version in enumerate(history) if version.modified_at >= travel_to), len(history))
        if changed == len(history):
            continue
        if changed and not history[changed - 1].is_deletion:
            restore.append(history[changed - 1])
        elif not newest.is_deletion:
            delete.append(key)
    return RecoveryPlan(tuple(restore), tuple(delete))


async def recover(
    store: VersionedStore,
    prefixes: Sequence[str],
    *,
    travel_to: datetime,
    done_if_after: datetime,
    is_stopping: Callable[[], bool],
    clock: Clock,
    log: Any,
) -> None:
    """Bring the prefixes back, one after the other, each with up to 10 repetitions.

    Raises: TooManyVersionsError, NullVersionError, TimeTravelCancelledError, StoreUnavailableError. Cancellation: safe.
    """

    async def bring_back(prefix: str) -> None:
        versions = await store.list_versions(prefix, limit=VERSIONS_MAX + 1)
        if len(versions) > VERSIONS_MAX:
            raise TooManyVersionsError(prefix=prefix)
        plan = plan_recovery(versions, travel_to=travel_to, done_if_after=done_if_after)
        log.info("time travel", prefix=prefix, restored=len(plan.restore), deleted=len(plan.delete))
        for first in range(0, len(plan.restore), _COPIES_AT_ONCE):
            _check_running(is_stopping)
            await _all(store.restore_version(version) for version in plan.restore[first : first + _COPIES_AT_ONCE])
        for first in range(0, len(plan.delete), _DELETIONS_AT_ONCE):
            _check_running(is_stopping)
            await store.delete(plan.delete[first : first + _DELETIONS_AT_ONCE])

    for prefix in prefixes:
        _check_running(is_stopping)
        await retry(
            lambda prefix=prefix: bring_back(prefix),  # type: ignore[misc]
            what=f"time travel of {prefix}",
            policy=DEFAULT_POLICY,
            clock=clock,
            log=log,
        )


async def _all(operations: Iterable[Any]) -> None:
    """Run all to their end, then raise the first error: what is under way is not left to itself."""
    results = await asyncio.gather(*operations, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _check_running(is_stopping: Callable[[], bool]) -> None:
    if is_stopping():
        raise TimeTravelCancelledError
