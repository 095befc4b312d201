"""When the loop collects garbage (tenants.md 14.2, 19)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from pageserver.config import TenantSettings
from pageserver.config.durations import Duration
from pageserver.tenant.garbage import GarbageCollector
from pageserver.timeline.state import ACTIVE
from tests.unit.world import FakeEngine


class ScriptedClock:
    """Each sleep ends at once, after the next step of the script; the end of the script cancels."""

    def __init__(self, *steps: Any) -> None:
        self.steps = list(steps)
        self.sleeps: list[float] = []

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_seconds(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        if not self.steps:
            raise asyncio.CancelledError
        self.steps.pop(0)()


async def test_the_first_round_is_at_random_and_a_period_of_zero_takes_effect_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = TenantSettings(gc_period=Duration.from_seconds(100))
    collected: list[float] = []

    def set_period(seconds: int) -> Callable[[], None]:
        def change() -> None:
            nonlocal settings
            settings = TenantSettings(gc_period=Duration.from_seconds(seconds))

        return change

    async def collect(*_: object) -> None:
        collected.append(settings.gc_period.seconds)

    clock = ScriptedClock(set_period(0), set_period(50), set_period(50))
    active: Any = SimpleNamespace(state=ACTIVE)
    collector = GarbageCollector(
        FakeEngine().make_repository("layered", Path()),
        timelines=lambda: [active],
        settings=lambda: settings,
        may_delete=lambda: True,
        exclusion=asyncio.Lock(),
        clock=clock,
        log=structlog.get_logger(),
    )
    monkeypatch.setattr(collector, "collect", collect)
    with pytest.raises(asyncio.CancelledError):
        await collector.run()
    assert 0 <= clock.sleeps[0] < 100
    assert clock.sleeps[1:] == [10, 50, 50]
    assert collected == [50]
