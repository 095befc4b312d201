"""A store that fails on purpose: `test_remote_failures` = N, `test_remote_failures_probability` = P percent, in every
build (remote-storage.md 19).

A counter for each (operation, path). Attempt k of the same operation:

    k = 1           always fails, whatever P
    k >= 2          fails if k < N and a random integer in 0…100 is below P; else it is forwarded and the counter is
                    forgotten, so that the next use fails again first

So N = 1 and N = 2 both give exactly one failure. A failed operation never reached the store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from enum import Enum
from pathlib import Path
from random import Random

from pageserver.remote.cloud_store import CloudStore
from pageserver.remote.storage import FetchedObject, ObjectStorage, StoredObject, StoreUnavailableError
from pageserver.remote.versions import ObjectVersion

_PERCENT_MAX = 100


class SimulatedOperation(Enum):
    """Names of the error texts."""

    LIST = "ListPrefixes"
    HEAD = "HeadObject"
    UPLOAD = "Upload"
    DOWNLOAD = "Download"
    DELETE = "Delete"
    DELETE_MANY = "DeleteObjects"
    TIME_TRAVEL = "TimeTravelRecover"


class SimulatedFailureError(StoreUnavailableError):
    """A failure that was asked for."""

    def __init__(self, operation: SimulatedOperation, paths: tuple[str, ...]) -> None:
        text = f"simulated failure of remote operation {operation.value}({', '.join(paths)})"
        if operation is SimulatedOperation.DOWNLOAD:
            text = f"Failed to download a remote file: {text}"
        super().__init__(text, operation=operation.value, key=paths[0] if paths else "")


class UnreliableStorage:
    """A store that fails before it works. Not nestable."""

    def __init__(self, inner: ObjectStorage, *, attempts: int, probability_percent: int, random: Random) -> None:
        assert attempts > 0, "zero attempts means that there is no such wrapper"
        assert not isinstance(inner, UnreliableStorage), "failures are not nested"
        self._inner = inner
        self._attempts = attempts
        self._probability_percent = min(probability_percent, _PERCENT_MAX)
        self._random = random
        self._counters: dict[tuple[SimulatedOperation, tuple[str, ...]], int] = {}

    async def get(self, key: str) -> bytes:
        self._attempt(SimulatedOperation.DOWNLOAD, key)
        return await self._inner.get(key)

    async def fetch(
        self, key: str, *, start: int = 0, end: int | None = None, unless_etag: str | None = None
    ) -> FetchedObject | None:
        self._attempt(SimulatedOperation.DOWNLOAD, key)
        return await self._inner.fetch(key, start=start, end=end, unless_etag=unless_etag)

    async def head(self, key: str) -> StoredObject:
        self._attempt(SimulatedOperation.HEAD, key)
        return await self._inner.head(key)

    async def download(self, key: str, target: Path) -> int:
        self._attempt(SimulatedOperation.DOWNLOAD, key)
        return await self._inner.download(key, target)

    async def put(self, key: str, content: bytes) -> None:
        self._attempt(SimulatedOperation.UPLOAD, key)
        await self._inner.put(key, content)

    async def put_if_absent(self, key: str, content: bytes) -> None:
        self._attempt(SimulatedOperation.UPLOAD, key)
        await self._inner.put_if_absent(key, content)

    async def upload(self, key: str, source: Path) -> None:
        self._attempt(SimulatedOperation.UPLOAD, key)
        await self._inner.upload(key, source)

    async def copy(self, source_key: str, target_key: str) -> None:
        # Counted as a download of the one and then an upload of the other.
        self._attempt(SimulatedOperation.DOWNLOAD, source_key)
        self._attempt(SimulatedOperation.UPLOAD, target_key)
        await self._inner.copy(source_key, target_key)

    async def delete(self, keys: Iterable[str]) -> None:
        names = list(keys)
        if len(names) == 1:
            self._attempt(SimulatedOperation.DELETE, names[0])
        else:
            self._attempt(SimulatedOperation.DELETE_MANY, *names)
        for name in names:
            await self._inner.delete([name])

    async def list_objects(
        self, prefix: str, *, start_after: str | None = None, max_keys: int | None = None
    ) -> AsyncIterator[StoredObject]:
        self._attempt(SimulatedOperation.LIST, prefix)
        async for found in self._inner.list_objects(prefix, start_after=start_after, max_keys=max_keys):
            yield found

    async def list_directories(self, prefix: str) -> list[str]:
        self._attempt(SimulatedOperation.LIST, prefix)
        return await self._inner.list_directories(prefix)

    @property
    def inner(self) -> ObjectStorage:
        """The store below, which does not fail on purpose."""
        return self._inner

    async def list_versions(self, prefix: str, *, limit: int) -> list[ObjectVersion]:
        """Fail as the recovery of a whole prefix."""
        assert isinstance(self._inner, CloudStore), "only such a store keeps versions"
        self._attempt(SimulatedOperation.TIME_TRAVEL, prefix)
        return await self._inner.list_versions(prefix, limit=limit)

    async def restore_version(self, version: ObjectVersion) -> None:
        """The recovery of the prefix has failed before, or does not."""
        assert isinstance(self._inner, CloudStore), "only such a store keeps versions"
        await self._inner.restore_version(version)

    def _attempt(self, operation: SimulatedOperation, *paths: str) -> None:
        counter = (operation, paths)
        number = self._counters.get(counter, 0) + 1
        if number == 1 or (
            number < self._attempts and self._random.randint(0, _PERCENT_MAX) < self._probability_percent
        ):
            self._counters[counter] = number
            raise SimulatedFailureError(operation, paths)
        del self._counters[counter]
