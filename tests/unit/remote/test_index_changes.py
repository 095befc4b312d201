"""What single events make of an index (remote-storage.md 5.6, 9.8)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from pageserver.errors import PreconditionFailedError
from pageserver.ids import TimelineId
from pageserver.lsn import Lsn
from pageserver.remote import index_changes
from pageserver.remote.index_part import GcBlocking, IndexPart
from tests.unit.remote.test_upload_operations import ENTRY, METADATA, index, name

NOW, LATER = "2026-01-02T03:04:05", "2026-01-02T03:04:06.123"


def timeline(number: int) -> TimelineId:
    return TimelineId(number.to_bytes(16, "big"))


def branch(ancestor: int, lsn: int = 0x80) -> IndexPart:
    return replace(index(0), metadata=replace(METADATA, ancestor_timeline=timeline(ancestor), ancestor_lsn=Lsn(lsn)))


def test_time_stamps_are_short_and_in_utc() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert index_changes.naive_time(moment) == NOW
    assert index_changes.naive_time(moment.replace(microsecond=120_000)) == f"{NOW}.120"
    assert index_changes.naive_time(moment.replace(microsecond=1)) == f"{NOW}.000001"
    assert index_changes.naive_time(moment.astimezone(timezone(timedelta(hours=5)))) == NOW


def test_archiving_and_hiding_set_and_clear() -> None:
    for change, field in ((index_changes.archived, "archived_at"), (index_changes.invisible, "marked_invisible_at")):
        once = change(index(0), NOW)
        assert getattr(once, field) == NOW
        assert change(once, LATER) is once, "the first time counts"
        assert getattr(change(once, None), field) is None
        fresh = index(0)
        assert change(fresh, None) is fresh


def test_only_a_running_import_is_finalized() -> None:
    started = {"idempotency_key": "key", "location": {"LocalFs": {"path": "/x"}}, "started_at": NOW}
    running = replace(index(), import_pgdata={"V1": {"InProgress": started}})
    done = index_changes.import_finalized(running, LATER)
    assert done.import_pgdata == {"V1": {"Done": {"idempotency_key": "key", "started_at": NOW, "finished_at": LATER}}}
    assert index_changes.import_finalized(done, NOW) is done
    assert index_changes.import_finalized(index(0), NOW).import_pgdata is None


def test_lineage_remembers_ninety_nine_ancestors() -> None:
    current = branch(1000)
    for number in range(150):
        current = index_changes.reparented(current, timeline(number))
        if number == 0:
            again = replace(current, metadata=replace(current.metadata, ancestor_timeline=timeline(1000)))
            assert index_changes.reparented(again, timeline(0)).lineage == current.lineage, "the last one is there"
        assert len(current.lineage.reparenting_history) == min(number + 1, 99)
        assert current.lineage.reparenting_history_truncated == (number + 1 > 99)
    assert current.lineage.reparenting_history == tuple(timeline(number) for number in range(50, 149))
    assert current.metadata.ancestor_timeline == timeline(149)
    assert current.metadata.ancestor_lsn == 0x80
    root = index(0)
    assert index_changes.reparented(root, timeline(1)) is root


def test_a_detach_adopts_layers_once() -> None:
    arguments = {"ancestor": timeline(7), "lsn": Lsn(0x80), "now": NOW}
    done = index_changes.detached(branch(7), {name(5): ENTRY}, **arguments)  # type: ignore[arg-type]
    assert set(done.layers) == {name(0), name(5)}
    assert done.metadata.ancestor_timeline is None
    assert done.metadata.ancestor_lsn == 0
    assert done.lineage.original_ancestor == (timeline(7), Lsn(0x80), NOW)
    assert index_changes.detached(done, {}, **{**arguments, "now": LATER}) is done  # type: ignore[arg-type]
    with pytest.raises(PreconditionFailedError):
        index_changes.detached(done, {}, ancestor=timeline(8), lsn=Lsn(0x80), now=NOW)


def test_gc_blocking_lives_as_long_as_a_reason() -> None:
    once = index_changes.gc_blocked(index(0), "DetachAncestor", NOW)
    twice = index_changes.gc_blocked(once, "Manual", LATER)
    assert twice.gc_blocking == GcBlocking(NOW, ("Manual", "DetachAncestor"))
    assert index_changes.gc_blocked(twice, "Manual", LATER) is twice
    left = index_changes.gc_unblocked(twice, "DetachAncestor")
    assert left.gc_blocking == GcBlocking(NOW, ("Manual",))
    assert index_changes.gc_unblocked(left, "DetachAncestor") is left
    assert index_changes.gc_unblocked(left, "Manual").gc_blocking is None
