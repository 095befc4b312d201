"""The one layer that tries again: how often, with which pauses, and what it never repeats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pageserver.errors import PageServerError
from pageserver.remote import (
    LocalStore,
    ObjectExistsError,
    ObjectNotFoundError,
    RetryingStorage,
    RetryPolicy,
    StoreRefusedError,
    StoreUnavailableError,
    UnknownOutcomeError,
)
from pageserver.remote.retry import FOR_EVER, pause_seconds, retry
from tests.stores.conftest import HastyClock


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def info(self, text: str, **_: Any) -> None:
        self.lines.append(("info", text))

    def warning(self, text: str, **_: Any) -> None:
        self.lines.append(("warning", text))


def failing(count: int, make: Callable[[], PageServerError]) -> Callable[[], Any]:
    """Return an operation that fails so often before it answers "done"."""
    left = [count]

    async def operation() -> str:
        if left[0]:
            left[0] -= 1
            raise make()
        return "done"

    return operation


def unavailable() -> StoreUnavailableError:
    return StoreUnavailableError("the store is away", operation="get", key="k")


def refused() -> StoreRefusedError:
    return StoreRefusedError("no", operation="get", key="k")


async def attempt(operation: Callable[[], Any], policy: RetryPolicy) -> tuple[Any, HastyClock, Log]:
    clock, log = HastyClock(), Log()
    return await retry(operation, what="get k", policy=policy, clock=clock, log=log), clock, log


def test_pauses_grow_to_three_seconds() -> None:
    """The sequence of remote-storage.md 9.6."""
    expected = [0, 1.1, 1.21, 1.331, 1.464, 1.611, 1.772, 1.949, 2.144, 2.358, 2.594, 2.853, 3, 3]
    assert [round(pause_seconds(failures), 3) for failures in range(14)] == expected
    assert pause_seconds(1_000_000) == 3


async def test_ten_retries_and_not_one_more() -> None:
    result, clock, log = await attempt(failing(10, unavailable), RetryPolicy())
    assert (result, len(clock.pauses)) == ("done", 10)
    assert [level for level, _ in log.lines] == ["info"] * 3 + ["warning"] * 7 + ["info"]
    assert log.lines[3][1] == "get k failed, will retry (attempt 3): the store is away"
    assert log.lines[-1][1] == "get k completed successfully after 10 retries"
    with pytest.raises(StoreUnavailableError):
        await attempt(failing(11, unavailable), RetryPolicy())


async def test_queues_retry_for_ever_refusals_too() -> None:
    _, clock, _ = await attempt(failing(1000, refused), FOR_EVER)
    assert len(clock.pauses) == 1000 and clock.pauses[-1] == 3


@pytest.mark.parametrize("make", [refused, lambda: ObjectNotFoundError(key="k"), lambda: ObjectExistsError(key="k")])
async def test_answers_are_not_repeated(make: Callable[[], PageServerError]) -> None:
    clock = HastyClock()
    with pytest.raises(type(make())):
        await retry(failing(1, make), what="x", policy=RetryPolicy(), clock=clock, log=Log())
    assert clock.pauses == []


class UncertainStore(LocalStore):
    """Conditional creates take effect or not, and then the connection breaks, by a script of one letter a call:
    `+` took effect, `-` did not, `.` works.
    """

    def __init__(self, root: Path, script: str) -> None:
        super().__init__(root)
        self.script = list(script)

    async def put_if_absent(self, key: str, content: bytes) -> None:
        step = self.script.pop(0) if self.script else "."
        if step != "-":
            await super().put_if_absent(key, content)
        if step != ".":
            raise UnknownOutcomeError("reset", operation="put", key=key)


@pytest.mark.parametrize("script", ["+", "-", "-+", "--", "----.", "+-"])
async def test_an_uncertain_create_is_ours_if_its_content_is(tmp_path: Path, script: str) -> None:
    store = UncertainStore(tmp_path, script)
    retrying = RetryingStorage(store, clock=HastyClock(), log=Log())
    await retrying.put_if_absent("k", b"mine")
    assert await store.get("k") == b"mine"


@pytest.mark.parametrize("script", ["-", ".", "---"])
async def test_an_uncertain_create_is_not_ours_if_its_content_is_not(tmp_path: Path, script: str) -> None:
    store = UncertainStore(tmp_path, script)
    await LocalStore(tmp_path).put("k", b"another's")
    with pytest.raises(ObjectExistsError):
        await RetryingStorage(store, clock=HastyClock(), log=Log()).put_if_absent("k", b"mine")
    assert await store.get("k") == b"another's"


async def test_a_certain_loser_is_told_so_also_with_equal_content(tmp_path: Path) -> None:
    """Two callers with the same content (they should have a nonce) do not both win while answers are certain."""
    store = RetryingStorage(LocalStore(tmp_path), clock=HastyClock(), log=Log())
    await store.put_if_absent("k", b"same")
    with pytest.raises(ObjectExistsError):
        await store.put_if_absent("k", b"same")


async def test_what_nobody_can_know_is_reported_as_unknown(tmp_path: Path) -> None:
    store = UncertainStore(tmp_path, "-" * 20)
    with pytest.raises(UnknownOutcomeError):
        await RetryingStorage(store, clock=HastyClock(), log=Log()).put_if_absent("k", b"mine")
