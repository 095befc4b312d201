"""Failures on purpose, exactly as remote-storage.md 19 says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from pageserver.remote import LocalStore
from pageserver.remote.unreliable import SimulatedFailureError, UnreliableStorage


class Dice(Random):
    """Gives the numbers of a list, and notes the bounds it was asked for."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(0)
        self.numbers = list(numbers)

    def randint(self, a: int, b: int) -> int:
        assert (a, b) == (0, 100), "inclusive bounds"
        return self.numbers.pop(0)


def unreliable(root: Path, attempts: int, percent: int = 100, random: Random | None = None) -> UnreliableStorage:
    return UnreliableStorage(
        LocalStore(root), attempts=attempts, probability_percent=percent, random=random or Dice(*[0] * 100)
    )


async def failures_of(operation: Callable[[], Awaitable[object]]) -> int:
    """Call until it succeeds; return how often it failed."""
    failures = 0
    while True:
        try:
            await operation()
        except SimulatedFailureError:
            failures += 1
        else:
            return failures


@pytest.mark.parametrize(("attempts", "expected"), [(1, 1), (2, 1), (3, 2), (10, 9)])
async def test_n_attempts_fail_n_minus_one_times_but_at_least_once(
    tmp_path: Path, attempts: int, expected: int
) -> None:
    store = unreliable(tmp_path, attempts)
    assert await failures_of(lambda: store.put("a/b", b"")) == expected
    assert await failures_of(lambda: store.put("a/b", b"")) == expected, "the counter is forgotten after a success"


async def test_the_first_attempt_fails_whatever_the_probability(tmp_path: Path) -> None:
    store = unreliable(tmp_path, 100, percent=0)
    assert await failures_of(lambda: store.put("a/b", b"")) == 1


async def test_later_attempts_fail_by_chance(tmp_path: Path) -> None:
    """P = 10: 9 is below it and fails, 10 is not. P above 100 is 100: then only the number 100 lets one through."""
    store = unreliable(tmp_path, 100, percent=10, random=Dice(9, 0, 10))
    assert await failures_of(lambda: store.put("a/b", b"")) == 3
    store = unreliable(tmp_path, 100, percent=1000, random=Dice(99, 99, 100))
    assert await failures_of(lambda: store.put("a/c", b"")) == 3


async def test_operations_and_paths_are_counted_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    store = unreliable(tmp_path / "bucket", 1)
    texts = []

    async def once(operation: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(SimulatedFailureError) as caught:
            await operation()
        texts.append(str(caught.value))
        await operation()

    await once(lambda: store.put("a", b"1"))
    await once(lambda: store.upload("b", tmp_path / "file"))
    await once(lambda: store.put_if_absent("c", b"3"))
    await once(lambda: store.get("a"))
    await once(lambda: store.get("b"))
    await once(lambda: store.download("a", tmp_path / "copy"))
    await once(lambda: store.head("a"))
    await once(lambda: store.list_directories("x/"))
    await once(lambda: anext(aiter(store.list_objects("")), None))
    await once(lambda: store.delete(["a"]))
    await once(lambda: store.delete(["b", "c"]))
    read = "Failed to download a remote file: simulated failure of remote operation Download"
    assert texts == [
        "simulated failure of remote operation Upload(a)",
        "simulated failure of remote operation Upload(b)",
        "simulated failure of remote operation Upload(c)",
        f"{read}(a)",
        f"{read}(b)",
        f"{read}(a)",
        "simulated failure of remote operation HeadObject(a)",
        "simulated failure of remote operation ListPrefixes(x/)",
        "simulated failure of remote operation ListPrefixes()",
        "simulated failure of remote operation Delete(a)",
        "simulated failure of remote operation DeleteObjects(b, c)",
    ]
    assert [item.key async for item in LocalStore(tmp_path / "bucket").list_objects("")] == []


async def test_ranges_do_not_count_apart(tmp_path: Path) -> None:
    store = unreliable(tmp_path, 3)
    await LocalStore(tmp_path).put("a", b"0123")
    for start in (0, 1):
        with pytest.raises(SimulatedFailureError):
            await store.fetch("a", start=start)
    assert await store.get("a") == b"0123"


async def test_a_copy_is_a_download_and_an_upload(tmp_path: Path) -> None:
    """The download fails first; when it passes the upload fails; then the download counts from the start again."""
    store = unreliable(tmp_path, 1)
    await LocalStore(tmp_path).put("a", b"1")
    for operation in ("Download", "Upload", "Download"):
        with pytest.raises(SimulatedFailureError, match=operation):
            await store.copy("a", "b")
    await store.copy("a", "b")
    assert await LocalStore(tmp_path).get("b") == b"1"
