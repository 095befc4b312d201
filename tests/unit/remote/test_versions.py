"""What time travel decides for each key (remote-storage.md 15), and how it is carried out."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from pageserver.clock import SystemClock
from pageserver.errors import InternalError
from pageserver.ids import TenantShardId
from pageserver.remote import paths
from pageserver.remote.storage import StoreUnavailableError
from pageserver.remote.versions import (
    NullVersionError,
    ObjectVersion,
    RecoveryPlan,
    TimeTravelCancelledError,
    TooManyVersionsError,
    plan_recovery,
    recover,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(minutes: int) -> datetime:
    return START + timedelta(minutes=minutes)


def version(key: str, minutes: int, *, gone: bool = False) -> ObjectVersion:
    return ObjectVersion(key, f"{key}@{minutes}{'-' if gone else ''}", at(minutes), gone)


def plan(*versions: ObjectVersion, to: int = 10, done: int = 100) -> RecoveryPlan:
    return plan_recovery(versions, travel_to=at(to), done_if_after=at(done))


def test_each_key_is_decided_by_its_own_history() -> None:
    old = version("changed", 5)
    gone = version("deleted", 5)
    decided = plan(
        version("same", 1),
        version("changed", 20),
        old,
        version("new", 12),
        version("deleted", 30, gone=True),
        gone,
        version("came and went", 30, gone=True),
        version("came and went", 20),
        version("came back", 40),
        version("came back", 5, gone=True),
        version("came back", 2),
    )
    assert decided.restore == (old, gone) or set(decided.restore) == {old, gone}
    assert set(decided.delete) == {"new", "came back"}


def test_a_change_at_the_very_moment_is_undone() -> None:
    assert plan(version("k", 10), version("k", 9)).restore == (version("k", 9),)
    assert plan(version("k", 10)).delete == ("k",)


def test_what_an_earlier_attempt_did_is_passed_over() -> None:
    history = (version("k", 101), version("k", 20), version("k", 5))
    assert plan(*history, done=100) == RecoveryPlan((), ())
    assert plan(*history, done=101).restore == (version("k", 5),)


def test_equal_times_are_decided_by_the_order_of_the_listing() -> None:
    """A store tells seconds: of two versions within one, the one that is listed first is the newer."""
    newer, older = ObjectVersion("k", "newer", at(5)), ObjectVersion("k", "older", at(5))
    assert plan(version("k", 20, gone=True), newer, older).restore == (newer,)


def test_an_object_without_versions_is_an_error_before_anything_is_changed() -> None:
    with pytest.raises(NullVersionError, match="'null'"):
        plan(version("a", 20), ObjectVersion("k", "null", at(1)))


def test_prefixes_hold_what_belongs_to_a_shard_but_no_claims() -> None:
    tenant = "ab" * 16
    assert paths.history_prefixes(TenantShardId.parse(tenant)) == [
        f"tenants/{tenant}/timelines/",
        f"sources/{tenant}/",
        f"names/{tenant}.json",
    ]
    assert paths.history_prefixes(TenantShardId.parse(f"{tenant}-0104")) == [
        f"tenants/{tenant}-0104/timelines/",
        f"sources/{tenant}-0104/",
    ]
    assert len(paths.history_prefixes(TenantShardId.parse(f"{tenant}-0004"))) == 5


class Versions:
    """A store with some versions, which fails when told to."""

    def __init__(self, *versions: ObjectVersion, failures: int = 0) -> None:
        self.versions = list(versions)
        self.failures = failures
        self.done: list[str] = []

    async def list_versions(self, prefix: str, *, limit: int) -> list[ObjectVersion]:
        return self.versions[:limit]

    async def restore_version(self, version: ObjectVersion) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailableError("not now", operation="copy", key=version.key)
        self.done.append(version.version_id)
        self.versions.insert(0, version_now(version.key))

    async def delete(self, keys: Iterable[str]) -> None:
        self.done += keys


def version_now(key: str) -> ObjectVersion:
    return ObjectVersion(key, "now", at(200))


class QuickClock(SystemClock):
    async def sleep(self, seconds: float) -> None:
        """Do not wait."""


async def travel(store: Versions, *, stopping: bool = False) -> None:
    await recover(
        store,
        ["prefix"],
        travel_to=at(10),
        done_if_after=at(100),
        is_stopping=lambda: stopping,
        clock=QuickClock(),
        log=structlog.get_logger(),
    )


async def test_a_prefix_is_repeated_and_what_is_done_stays_done() -> None:
    store = Versions(version("a", 20), version("a", 5), version("b", 20), version("b", 5), version("c", 15), failures=3)
    await travel(store)
    assert sorted(store.done) == ["a@5", "b@5", "c"]


async def test_a_prefix_that_keeps_failing_ends_after_ten_repetitions() -> None:
    store = Versions(version("a", 20), version("a", 5), failures=100)
    with pytest.raises(StoreUnavailableError):
        await travel(store)
    assert store.failures == 89


async def test_limits_and_cancellation_are_said_in_the_words_of_the_specification(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(TimeTravelCancelledError, match=r"^cancelled$"):
        await travel(Versions(), stopping=True)
    monkeypatch.setattr("pageserver.remote.versions.VERSIONS_MAX", 1)
    with pytest.raises(TooManyVersionsError, match=r"^too many versions in remote storage$") as caught:
        await travel(Versions(version("a", 1), version("b", 1)))
    assert isinstance(caught.value, InternalError)
