"""One store that two servers in this process use at the same time, with requests and answers that travel for a while.

How long is drawn from the generator that the traffic is given, so a seed makes an interleaving: a request may reach the
store long after it was sent, an answer its sender long after the store did it. `Traffic.stopped` holds everything still
between two operations: what the bucket has then is what a reader may meet at that moment.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from pageserver.remote import FetchedObject, LocalStore, StoredObject

_T = TypeVar("_T")
_SHORT_SECONDS: Final = 0.002
_LONG_SECONDS: Final = 0.03


class Traffic:
    """Requests on their way, and a barrier that stops them all."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._stops = 0
        self._inside = 0
        self._goes_on = asyncio.Event()
        self._came_out = asyncio.Event()
        self.operations = 0

    async def carry(self, work: Awaitable[_T]) -> _T:
        """Bring a request to the store, and the answer back."""
        try:
            await self._travel()
            while self._stops:
                await self._goes_on.wait()
        except BaseException:
            if asyncio.iscoroutine(work):
                work.close()
            raise
        self._inside += 1
        try:
            answer = await work
        finally:
            self.operations += 1
            self._inside -= 1
            self._came_out.set()
        await self._travel()
        return answer

    @asynccontextmanager
    async def stopped(self) -> AsyncIterator[None]:
        """No operation is at the store inside of the block."""
        self._stops += 1
        self._goes_on.clear()
        try:
            while self._inside:
                self._came_out.clear()
                await self._came_out.wait()
            yield
        finally:
            self._stops -= 1
            if not self._stops:
                self._goes_on.set()

    async def _travel(self) -> None:
        luck = self._rng.random()
        if luck < 0.7:
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(self._rng.uniform(0, _SHORT_SECONDS if luck < 0.9 else _LONG_SECONDS))


class TangledStore(LocalStore):
    """The bucket as one of the servers sees it."""

    def __init__(self, root: Path, traffic: Traffic) -> None:
        super().__init__(root)
        self._traffic = traffic

    async def get(self, key: str) -> bytes:
        return await self._traffic.carry(super().get(key))

    async def fetch(self, key: str, **options: Any) -> FetchedObject | None:
        return await self._traffic.carry(super().fetch(key, **options))

    async def head(self, key: str) -> StoredObject:
        return await self._traffic.carry(super().head(key))

    async def download(self, key: str, target: Path) -> int:
        return await self._traffic.carry(super().download(key, target))

    async def put(self, key: str, content: bytes) -> None:
        await self._traffic.carry(super().put(key, content))

    async def put_if_absent(self, key: str, content: bytes) -> None:
        await self._traffic.carry(super().put_if_absent(key, content))

    async def upload(self, key: str, source: Path) -> None:
        await self._traffic.carry(super().upload(key, source))

    async def delete(self, keys: Iterable[str]) -> None:
        # Key by key: a bulk deletion is not atomic either.
        for key in list(keys):
            await self._traffic.carry(super().delete([key]))

    async def list_objects(self, prefix: str, **options: Any) -> AsyncIterator[StoredObject]:
        async def listing() -> list[StoredObject]:
            return [item async for item in super(TangledStore, self).list_objects(prefix, **options)]

        for item in await self._traffic.carry(listing()):
            yield item

    async def list_directories(self, prefix: str) -> list[str]:
        return await self._traffic.carry(super().list_directories(prefix))
