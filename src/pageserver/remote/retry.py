"""The one layer that tries again: pauses, limits, what is worth it, and how an uncertain create is settled.

    failures so far      0   1    2     3      4  …
    pause in seconds     0  1.1  1.21  1.331  …  at most 3          (remote-storage.md 9.6)

Invariants:
* a refusal (credentials, no such bucket), an absent object, a conflict, damage and a wrong request are not repeated;
* every operation but `put_if_absent` may be repeated blindly: repeating it gives the same state;
* `put_if_absent` after an uncertain outcome reads the object back: it is ours if its content is ours. Until a read
  back says so, an "exists" is not believed either: S3 answers 409 to a create that raced with another one, also if
  nothing was created in the end.

Owners of queues that retry for ever call `retry(…, policy=FOR_EVER)` around `single_attempts(storage)`, so that the two
never multiply.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pageserver.clock import Clock
from pageserver.remote.request_stats import RequestStats
from pageserver.remote.storage import (
    FetchedObject,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectStorage,
    StoredObject,
    StoreRefusedError,
    StoreUnavailableError,
    UnknownOutcomeError,
)

_T = TypeVar("_T")
_PAUSE_BASE_SECONDS = 1.1
_PAUSE_MAX_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`retries_max` None is for ever. The first `quiet_failures` are logged at info, later ones at warning."""

    quiet_failures: int = 3
    retries_max: int | None = 10
    repeats_refusals: bool = False
    """Whether a refusal is waited out too: an operator may repair credentials while we run."""


DEFAULT_POLICY = RetryPolicy()
"""Downloads, listings, copies and whatever else has a caller who waits (remote-storage.md 9.6)."""
FOR_EVER = RetryPolicy(retries_max=None, repeats_refusals=True)
"""Uploads of layers, indices and manifests: they stop with their owner only."""


def pause_seconds(failures: int) -> float:
    """Return the pause before the next attempt; `failures` counts those before the last one."""
    return 0.0 if failures == 0 else min(_PAUSE_BASE_SECONDS ** min(failures, 100), _PAUSE_MAX_SECONDS)


async def retry(
    operation: Callable[[], Awaitable[_T]], *, what: str, policy: RetryPolicy, clock: Clock, log: Any
) -> _T:
    """Call `operation` until it succeeds. Raises what is not worth repeating, and the last failure after
    `policy.retries_max` repetitions.

    Cancellation: at any point; a pause is cut short.
    """
    failures = 0
    while True:
        try:
            result = await operation()
        except StoreUnavailableError as error:
            if isinstance(error, StoreRefusedError) and not policy.repeats_refusals:
                raise
            if policy.retries_max is not None and failures >= policy.retries_max:
                raise
            report = log.info if failures < policy.quiet_failures else log.warning
            report(f"{what} failed, will retry (attempt {failures}): {error}")
            await clock.sleep(pause_seconds(failures))
            failures += 1
        else:
            if failures:
                log.info(f"{what} completed successfully after {failures} retries")
            return result


class RetryingStorage:
    """A store whose operations are tried again by `policy`. `stats` is what the store below counts, if it counts."""

    def __init__(
        self,
        inner: ObjectStorage,
        *,
        clock: Clock,
        log: Any,
        policy: RetryPolicy = DEFAULT_POLICY,
        stats: RequestStats | None = None,
    ) -> None:
        self.stats = stats
        self.single_attempts = inner
        self._inner = inner
        self._clock = clock
        self._log = log
        self._policy = policy

    async def get(self, key: str) -> bytes:
        return await self._retry(lambda: self._inner.get(key), f"get {key}")

    async def fetch(
        self, key: str, *, start: int = 0, end: int | None = None, unless_etag: str | None = None
    ) -> FetchedObject | None:
        return await self._retry(
            lambda: self._inner.fetch(key, start=start, end=end, unless_etag=unless_etag), f"get {key}"
        )

    async def head(self, key: str) -> StoredObject:
        return await self._retry(lambda: self._inner.head(key), f"head {key}")

    async def download(self, key: str, target: Path) -> int:
        return await self._retry(lambda: self._inner.download(key, target), f"download {key}")

    async def put(self, key: str, content: bytes) -> None:
        await self._retry(lambda: self._inner.put(key, content), f"put {key}")

    async def put_if_absent(self, key: str, content: bytes) -> None:
        """Create an object; see the module about uncertain outcomes. Raises ObjectExistsError, UnknownOutcomeError if
        there was no way to find out: the object may be there, or appear later.
        """
        attempt = _Create(self._inner, key, content)
        await self._retry(attempt.run, f"create {key}")

    async def upload(self, key: str, source: Path) -> None:
        await self._retry(lambda: self._inner.upload(key, source), f"upload {key}")

    async def copy(self, source_key: str, target_key: str) -> None:
        await self._retry(lambda: self._inner.copy(source_key, target_key), f"copy {source_key}")

    async def delete(self, keys: Iterable[str]) -> None:
        names = list(keys)
        if names:
            await self._retry(lambda: self._inner.delete(names), f"delete {names[0]} and {len(names) - 1} more")

    async def list_objects(
        self, prefix: str, *, start_after: str | None = None, max_keys: int | None = None
    ) -> AsyncIterator[StoredObject]:
        """List; after a failure the listing goes on behind the last key that was yielded."""
        listing = _Listing(self._inner, prefix, start_after, max_keys)
        try:
            while (found := await self._retry(listing.advance, f"list {prefix}")) is not None:
                yield found
        finally:
            await listing.close()

    async def list_directories(self, prefix: str) -> list[str]:
        return await self._retry(lambda: self._inner.list_directories(prefix), f"list {prefix}")

    async def _retry(self, operation: Callable[[], Awaitable[_T]], what: str) -> _T:
        return await retry(operation, what=what, policy=self._policy, clock=self._clock, log=self._log)


def single_attempts(storage: ObjectStorage) -> ObjectStorage:
    """Return the store whose operations are attempted once: for owners that retry themselves."""
    return storage.single_attempts if isinstance(storage, RetryingStorage) else storage


class _Create:
    """One conditional create over its attempts. `uncertain` is set once an attempt may have created the object."""

    def __init__(self, inner: ObjectStorage, key: str, content: bytes) -> None:
        self._inner = inner
        self._key = key
        self._content = content
        self._uncertain = False

    async def run(self) -> None:
        try:
            await self._inner.put_if_absent(self._key, self._content)
        except UnknownOutcomeError:
            self._uncertain = True
            if await self._stored() == self._content:
                return
            raise
        except ObjectExistsError as error:
            stored = await self._stored()
            if stored is None:
                raise StoreUnavailableError(
                    f"create of {self._key!r} met another one, and nothing is there", operation="put", key=self._key
                ) from error
            if not self._uncertain or stored != self._content:
                raise
        except StoreUnavailableError as error:
            if self._uncertain:  # of an earlier attempt: not finding out now does not make that one certain
                raise UnknownOutcomeError(error.message, operation="put", key=self._key) from error
            raise

    async def _stored(self) -> bytes | None:
        try:
            return await self._inner.get(self._key)
        except ObjectNotFoundError:
            return None
        except StoreUnavailableError as error:
            if self._uncertain:
                raise UnknownOutcomeError(error.message, operation="put", key=self._key) from error
            raise


class _Listing:
    """A listing that can be begun again behind the last key."""

    def __init__(self, inner: ObjectStorage, prefix: str, start_after: str | None, max_keys: int | None) -> None:
        self._inner = inner
        self._prefix = prefix
        self._last = start_after
        self._left = max_keys
        self._stream: AsyncIterator[StoredObject] | None = None

    async def advance(self) -> StoredObject | None:
        if self._left == 0:
            return None
        if self._stream is None:
            self._stream = aiter(self._inner.list_objects(self._prefix, start_after=self._last, max_keys=self._left))
        try:
            found = await anext(self._stream, None)
        except BaseException:
            self._stream = None
            raise
        if found is not None:
            self._last = found.key
            self._left = None if self._left is None else self._left - 1
        return found

    async def close(self) -> None:
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            with contextlib.suppress(StoreUnavailableError):
                await close()
