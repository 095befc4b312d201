"""Time as a component: everything that needs it is handed a ``Clock``, so that tests can let time jump."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol

_SLEEP_SECONDS_MAX = 10 * 366 * 86_400.0
"""A setting may ask for more than the event loop's timers can count; nobody will see the difference."""


class Clock(Protocol):
    """What the server asks of time."""

    def now(self) -> datetime:
        """Return the wall clock's time, in UTC."""
        ...

    def monotonic_seconds(self) -> float:
        """Return seconds since some fixed moment; never goes backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait. Cancellation: safe at any point."""
        ...


class SystemClock:
    """The clock of the machine; the only place that reads it."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_seconds(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, _SLEEP_SECONDS_MAX))
