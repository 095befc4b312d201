"""Where a WAL source stands still because its tenant holds more than it may.

    streaming ──the limit is reached──▶ disconnected, everything durable ──room again──▶ connecting

The connection is given up rather than held: a primary that stops would wait for us for ever, and its slot keeps the
WAL either way. What was ingested is made durable first, so that the slot keeps no more than it must.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from pageserver.clock import Clock
from pageserver.errors import UnavailableError

CHECK_SECONDS: Final = 1.0


class IngestPausedError(UnavailableError):
    """No more WAL may be taken now. Carries ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class IngestGate:
    """Asks `reason` why nothing may be ingested (None: it may), and waits while that is so."""

    def __init__(self, reason: Callable[[], str | None], *, clock: Clock, log: Any) -> None:
        self._reason = reason
        self._clock = clock
        self._log = log

    def check(self) -> None:
        """Raise IngestPausedError if nothing may be ingested."""
        reason = self._reason()
        if reason is not None:
            raise IngestPausedError(reason)

    async def wait(self, *, flush: Callable[[], Awaitable[None]], note: Callable[[str], None]) -> None:
        """Return when ingest may go on; at once if it may. Otherwise `flush` makes durable what there is, and `note`
        hears the reason now and then. Raises what the flush raises. Cancellation: safe.
        """
        reason = self._reason()
        if reason is None:
            return
        self._log.warning("ingest is paused", reason=reason)
        note(reason)
        await flush()
        while (reason := self._reason()) is not None:
            note(reason)
            await self._clock.sleep(CHECK_SECONDS)
        self._log.info("ingest goes on")
