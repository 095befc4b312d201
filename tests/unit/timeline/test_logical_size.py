"""The size of a timeline's relations: known once, kept up to date by what ingest tells."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import structlog

from pageserver.clock import SystemClock
from pageserver.counts import SizeCalculations
from pageserver.errors import MissingKeyError, StoppedError
from pageserver.keyspace.key import Key
from pageserver.lsn import Lsn
from pageserver.timeline.logical_size import CurrentLogicalSize
from pageserver.timeline.size_calculation import SizeCalculation
from pageserver.turns import TurnQueue

START = Lsn(0x100)


class Pauses(SystemClock):
    """Lets no pause end before the test says so."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.go = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self.go.wait()
        self.go.clear()


class Calculation:
    """A calculation at work over a size that `at` gives by LSN."""

    def __init__(self, *, is_here: bool = True, turns: TurnQueue | None = None) -> None:
        self.size = CurrentLogicalSize(START)
        self.asked: list[Lsn] = []
        self.fail: Exception | None = None
        self.before_answer: Callable[[], None] = lambda: None
        self.counts = SizeCalculations()
        self.seconds: list[float] = []
        self.clock = Pauses()
        self.calculation = SizeCalculation(
            self.size,
            compute=self._compute,
            is_here=lambda: is_here,
            turns=turns or TurnQueue(1),
            counts=self.counts,
            note_seconds=self.seconds.append,
            clock=self.clock,
            log=structlog.get_logger(),
        )
        self.size.on_restart = self.calculation.want

    def _compute(self, lsn: Lsn) -> int:
        self.asked.append(lsn)
        self.before_answer()
        if self.fail is not None:
            raise self.fail
        return 8192 * (lsn - START) + 81920

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.calculation.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - a thread works, and has no event to wait for
                await asyncio.sleep(0.001)


def test_growth_counts_before_the_size_is_known_and_is_kept_when_it_is() -> None:
    size = CurrentLogicalSize(START)
    assert (size.size_bytes, size.is_accurate) == (0, False)
    size.note_growth(Lsn(0x108), -8192)
    assert size.size_bytes == 0, "what was there is not known: no negative sizes"
    size.note_growth(Lsn(0x110), 3 * 8192)
    assert (size.size_bytes, size.is_accurate) == (2 * 8192, False)
    at = size.growth
    assert at.lsn == Lsn(0x110)
    size.note_growth(Lsn(0x118), 8192)
    size.learn(at, 100 * 8192)
    assert (size.size_bytes, size.is_accurate) == (101 * 8192, True)
    size.note_growth(Lsn(0x120), -50 * 8192)
    assert (size.size_bytes, size.is_accurate) == (51 * 8192, True)


def test_what_was_computed_before_a_new_base_is_of_no_use() -> None:
    size = CurrentLogicalSize(START)
    asked = []
    size.on_restart = lambda: asked.append(size.growth.lsn)
    before = size.growth
    size.note_growth(Lsn(0x110), 8192)
    size.restart(Lsn(0x200))
    size.learn(before, 5 * 8192)
    assert (size.size_bytes, size.is_accurate, asked) == (0, False, [Lsn(0x200)])
    size.learn(size.growth, 7 * 8192)
    assert (size.size_bytes, size.is_accurate) == (7 * 8192, True)


async def test_the_size_is_computed_at_the_lsn_that_ingest_told() -> None:
    """WAL that comes while relations are read is not counted twice."""
    work = Calculation()
    work.size.note_growth(START + 8, 8 * 8192)
    work.before_answer = lambda: work.size.note_growth(START + 16, 8 * 8192)
    async with work.running():
        assert not work.size.is_accurate
        work.calculation.want()
        await work.until(lambda: work.size.is_accurate)
        assert work.asked == [START + 8]
        assert work.size.size_bytes == 81920 + 16 * 8192
    assert (work.counts.finished, len(work.seconds)) == (1, 1)
    assert work.counts.started["first", "AfterBackgroundTasksRateLimit"] == 1


async def test_layers_are_not_fetched_for_a_size_at_once_but_when_somebody_asks() -> None:
    work = Calculation(is_here=False)
    async with work.running():
        work.calculation.want()
        await work.until(lambda: work.clock.asked != [])
        assert (work.clock.asked, work.asked) == ([60.0], [])
        await asyncio.wait_for(work.calculation.hurry(), 10)
        assert (work.asked, work.size.is_accurate) == ([START], True)
        await asyncio.wait_for(work.calculation.hurry(), 10)
        assert len(work.asked) == 1
    assert work.counts.started["first", "SkippedConcurrencyLimiter"] == 1


async def test_a_size_waits_for_its_turn_but_not_when_somebody_asks() -> None:
    turns = TurnQueue(1)
    work = Calculation(turns=turns)
    async with turns.turn(asyncio.Event()), work.running():
        work.calculation.want()
        await asyncio.sleep(0.05)
        assert work.asked == []
        await asyncio.wait_for(work.calculation.hurry(), 10)
    assert work.size.is_accurate


async def test_a_failure_is_told_to_who_waits_and_tried_again() -> None:
    work = Calculation()
    work.fail = MissingKeyError(key=Key.database_directory(), lsn=START)
    async with work.running():
        with pytest.raises(MissingKeyError):
            await asyncio.wait_for(work.calculation.hurry(), 10)
        await work.until(lambda: len(work.clock.asked) == 1)
        assert 3000 <= work.clock.asked[0] <= 4200
        work.clock.go.set()
        await work.until(lambda: len(work.clock.asked) == 2)
        work.fail = None
        await asyncio.wait_for(work.calculation.hurry(), 10)
    assert work.size.is_accurate
    assert work.counts.dropped == {"first": 1, "retry": 1}
    assert sum(work.counts.started.values()) == 3


async def test_a_surprise_is_a_failure_like_others() -> None:
    """Lost once: what one store raised ended the timeline's loops, and who waited for a flush waited for ever."""
    work = Calculation()
    work.fail = RuntimeError("dictionary changed size during iteration")
    async with work.running():
        with pytest.raises(RuntimeError):
            await asyncio.wait_for(work.calculation.hurry(), 10)
        work.fail = None
        await asyncio.wait_for(work.calculation.hurry(), 10)
    assert work.size.is_accurate


async def test_a_new_base_is_computed_again_even_while_the_old_one_is() -> None:
    work = Calculation()
    numbers = itertools.count()
    loop = asyncio.get_running_loop()

    async def restart() -> None:
        work.size.restart(START + 64)

    def restart_once() -> None:
        if next(numbers) == 0:
            asyncio.run_coroutine_threadsafe(restart(), loop).result(10)

    work.before_answer = restart_once
    async with work.running():
        work.calculation.want()
        await work.until(lambda: work.size.is_accurate)
        assert work.asked == [START, START + 64]
        work.size.restart(START + 128)
        await work.until(lambda: work.size.is_accurate)
        assert work.asked[-1] == START + 128


async def test_who_waits_hears_of_the_end() -> None:
    work = Calculation()
    begun, go = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        go.wait(10)

    work.before_answer = hold
    async with work.running():
        waiting = asyncio.create_task(work.calculation.hurry())
        await work.until(begun.is_set)
    with pytest.raises(StoppedError):
        await asyncio.wait_for(waiting, 10)
    go.set()
    with pytest.raises(StoppedError):
        await work.calculation.hurry()
