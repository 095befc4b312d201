"""Work in the background takes turns: a few at a time, and at once what somebody asks for (tenants.md 6.2).

Invariant: work that came by a permit gives it back when it ends, however it ends; what was asked for holds none, so
that no amount of work in the background stands before a client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class TurnQueue:
    """One for the process and one kind of work, of which `concurrency` run at once, besides what is asked for."""

    def __init__(self, concurrency: int) -> None:
        self._permits = asyncio.Semaphore(concurrency)

    @asynccontextmanager
    async def turn(self, wanted: asyncio.Event) -> AsyncIterator[None]:
        """Wait for a permit or until `wanted` is set, whichever is first."""
        has_permit = await self._wait(wanted)
        try:
            yield
        finally:
            if has_permit:
                self._permits.release()

    async def _wait(self, wanted: asyncio.Event) -> bool:
        """Return whether a permit is held now."""
        if wanted.is_set():
            return False
        permit = asyncio.create_task(self._permits.acquire(), name="permit")
        asked = asyncio.create_task(wanted.wait(), name="wanted now")
        try:
            await asyncio.wait((permit, asked), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if await _end(permit):
                self._permits.release()
            raise
        finally:
            asked.cancel()
        return await _end(permit)


async def _end(permit: asyncio.Task[bool]) -> bool:
    """Give up waiting for a permit; return whether it was got nevertheless."""
    permit.cancel()
    await asyncio.wait((permit,))
    return not permit.cancelled() and permit.result()
