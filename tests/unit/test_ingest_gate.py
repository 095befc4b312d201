"""A WAL source that stands still until there is room (tenants' setting stored_bytes_max)."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from pageserver.wal.ingest_gate import IngestGate, IngestPausedError


class Steps:
    """A clock on which each pause opens the next reason."""

    def __init__(self, reasons: list[str | None]) -> None:
        self.reasons = reasons

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.reasons.pop(0)

    def monotonic_seconds(self) -> float:
        return 0.0


async def test_what_is_there_becomes_durable_before_the_wait() -> None:
    steps, told = Steps(["full", "still full", None]), []

    async def flush() -> None:
        told.append("flushed")

    gate = IngestGate(lambda: steps.reasons[0], clock=steps, log=structlog.get_logger())  # type: ignore[arg-type]
    with pytest.raises(IngestPausedError, match="full"):
        gate.check()
    await gate.wait(flush=flush, note=told.append)
    assert told == ["full", "flushed", "full", "still full"]
    gate.check()
    await gate.wait(flush=flush, note=told.append)
    assert len(told) == 4, "an open gate does nothing"


async def test_waiting_can_be_cancelled() -> None:
    never = asyncio.Event()

    async def flush() -> None:
        await never.wait()

    steps = Steps(["full"])
    gate = IngestGate(lambda: steps.reasons[0], clock=steps, log=structlog.get_logger())  # type: ignore[arg-type]
    waiting = asyncio.ensure_future(gate.wait(flush=flush, note=lambda _: None))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
