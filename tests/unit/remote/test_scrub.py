"""The scrubber's verdicts: damage is an error, garbage is listed, and nothing that a server may need is deleted
(tenants.md 24).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pageserver.clock import SystemClock
from pageserver.ids import Generation, ShardCount, ShardNumber, TenantShardId, TimelineId
from pageserver.lsn import Lsn
from pageserver.remote import IndexPart, LayerEntry, LayerName, LocalStore, ObjectNotFoundError, TimelineMetadata, paths
from pageserver.remote.scrub import Scrubber, ScrubReport
from pageserver.remote.scrub.judge import find_split_violations
from pageserver.remote.source_document import SourceDocument, write_source_document
from pageserver.remote.storage import StoredObject
from pageserver.remote.tenant_manifest import OffloadedTimeline, TenantManifest
from tests.unit.remote.fakes import SHARD, TIMELINE

TENANT = SHARD.tenant_id
FULL = "0" * 36 + "-" + "F" * 36
OTHER = TimelineId(bytes.fromhex("33" * 16))
NOW = datetime.now(UTC)


def delta(start: int, end: int) -> str:
    return f"{FULL}__{start:016X}-{end:016X}"


A, B, C = delta(0x10, 0x21), delta(0x21, 0x31), delta(0x31, 0x41)


def index_of(layers: Mapping[str, int], **more: Any) -> IndexPart:
    """Return an index that names layers by their generations; each has 5 bytes."""
    metadata = TimelineMetadata(Lsn(0x40), None, None, Lsn(0), Lsn(0x10), Lsn(0x10), 16)
    entries = {name: LayerEntry(5, Generation(number)) for name, number in layers.items()}
    return replace(IndexPart(metadata, entries), **more)


class Bucket:
    """A bucket whose objects have the ages that a test gives them."""

    def __init__(self, root: Path) -> None:
        self.store = LocalStore(root)

    async def put(self, key: str, content: bytes = b"layer", *, hours_old: float = 5) -> str:
        await self.store.put(key, content)
        moment = (NOW - timedelta(hours=hours_old)).timestamp()
        os.utime(self.store.root / key, (moment, moment))
        return key

    async def layer(self, name: str, generation: int, *, timeline: TimelineId = TIMELINE, hours_old: float = 5) -> str:
        key = paths.layer_key(TENANT, _unsharded(), timeline, name, Generation(generation))
        return await self.put(key, hours_old=hours_old)

    async def index(self, index: IndexPart, generation: int, *, hours_old: float = 5) -> str:
        return await self.put(
            paths.index_key(SHARD, TIMELINE, Generation(generation)), index.encode(), hours_old=hours_old
        )

    async def claim(self, generation: int, *, hours_old: float) -> str:
        return await self.put(paths.claim_key(SHARD, Generation(generation)), b"{}", hours_old=hours_old)

    async def scrub(self, *, purge_hours: float | None = None, store: LocalStore | None = None) -> ScrubReport:
        scrubber = Scrubber(store or self.store, clock=SystemClock())
        age = None if purge_hours is None else timedelta(hours=purge_hours)
        return await scrubber.scrub(await scrubber.tenants(), purge_min_age=age)

    async def keys(self) -> set[str]:
        return {item.key async for item in self.store.list_objects("")}


def _unsharded() -> Any:
    return LayerEntry(5).shard


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path)


def messages(report: ScrubReport) -> list[str]:
    return [finding.message for finding in report.errors]


async def test_a_whole_bucket_has_nothing_to_report(bucket: Bucket) -> None:
    await bucket.claim(1, hours_old=6)
    await bucket.layer(A, 1)
    await bucket.index(index_of({A: 1}), 1)
    await bucket.put(paths.initdb_key(TENANT, TIMELINE))
    await bucket.put(paths.heatmap_key(SHARD))
    await bucket.put(paths.manifest_key(SHARD, Generation(1)), TenantManifest().encode())
    report = await bucket.scrub()
    assert (report.findings, report.orphans, report.in_flight, report.relics) == ([], [], [], [])
    assert (report.tenants, report.shards, report.timelines, report.layers, report.layers_bytes) == (1, 1, 1, 1, 5)


async def test_missing_and_truncated_layers_are_errors(bucket: Bucket) -> None:
    whole, short = await bucket.layer(A, 1), await bucket.layer(B, 1)
    gone = paths.layer_key(TENANT, _unsharded(), TIMELINE, C, Generation(1))
    await bucket.index(index_of({A: 1, B: 1, C: 1}), 1)
    await bucket.put(short, b"lay")
    report = await bucket.scrub()
    assert {finding.where for finding in report.errors} == {short, gone}
    assert whole not in str(report.to_json())
    assert sorted(messages(report)) == [
        "layer has 3 bytes, the index says 5",
        "layer is named by the index, but there is no such object",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "index_part.json body parsing error: "),
        (index_of({}).encode(), "index_part.json has no layers (ancestor_timeline=None)"),
        (index_of({A: 1}, version=16).encode(), "index_part.json version: 16"),
        (
            json.dumps({**json.loads(index_of({A: 1}).encode()), "disk_consistent_lsn": "0/30"}).encode(),
            "Mismatching disk_consistent_lsn in TimelineMetadata (0/40) and in the index_part (0/30)",
        ),
    ],
)
async def test_an_index_that_breaks_the_rules_is_an_error(bucket: Bucket, content: bytes, message: str) -> None:
    await bucket.layer(A, 1)
    key = await bucket.put(paths.index_key(SHARD, TIMELINE, Generation(1)), content)
    report = await bucket.scrub()
    assert [finding.where for finding in report.errors] == [key]
    assert messages(report)[0].startswith(message)


async def test_an_empty_layer_is_an_error_and_an_import_may_have_no_layers(bucket: Bucket) -> None:
    key = await bucket.layer(A, 1)
    await bucket.put(key, b"")
    await bucket.index(replace(index_of({}), layers={A: LayerEntry(0, Generation(1))}), 1)
    assert messages(await bucket.scrub()) == [f"index_part.json contains a layer {A} that has 0 size"]
    await bucket.index(index_of({}, import_pgdata={"V1": {}}), 1)
    assert messages(await bucket.scrub()) == []


def test_deltas_that_overlap_with_other_boundaries_violate_the_split_rule() -> None:
    left, right = "0" * 36 + "-" + "5" * 36, "5" * 36 + "-" + "F" * 36
    single = "0" * 35 + "1-" + "0" * 35 + "2"

    def violations(*names: str) -> list[str]:
        return [str(one) for one, _ in find_split_violations(map(LayerName.parse, names))]

    lsns = "0000000000000010-0000000000000030", "0000000000000020-0000000000000040"
    assert violations(f"{left}__{lsns[0]}", f"{right}__{lsns[1]}") == [], "apart in keys"
    assert violations(f"{left}__{lsns[0]}", f"{FULL}__{lsns[0]}") == [], "the same LSNs"
    assert violations(f"{single}__{lsns[0]}", f"{FULL}__{lsns[1]}") == [], "of one key"
    assert violations(A, B, C) == [], "one after the other"
    assert violations(f"{left}__{lsns[0]}", f"{FULL}__{lsns[1]}") == [f"{FULL}__{lsns[1]}"]


async def test_unknown_keys_are_reported_and_never_deleted(bucket: Bucket) -> None:
    await bucket.layer(A, 1)
    await bucket.index(index_of({A: 1}), 1)
    prefix = paths.timeline_prefix(SHARD, TIMELINE)
    unknown = {f"{prefix}notes.txt", f"{prefix}{A}-00000001.tmp", f"tenants/{SHARD}/deleted"}
    for key in unknown:
        await bucket.put(key, hours_old=1000)
    report = await bucket.scrub(purge_hours=3)
    assert {finding.where for finding in report.warnings} == unknown
    assert (report.errors, report.purged) == ([], [])
    assert unknown <= await bucket.keys()


async def test_what_older_generations_left_is_an_orphan_and_what_newer_ones_wrote_is_in_flight(bucket: Bucket) -> None:
    """Goal: the table of tenants.md 24. Method: one unnamed layer each below, at and above the index's generation."""
    await bucket.claim(2, hours_old=8)
    await bucket.layer(A, 1)
    await bucket.index(index_of({A: 1}), 2)
    below, same, above = await bucket.layer(B, 1), await bucket.layer(B, 2), await bucket.layer(B, 3)
    report = await bucket.scrub()
    assert [orphan.key for orphan in report.orphans] == [below]
    assert report.in_flight == [same, above]


async def test_purge_deletes_old_orphans_and_a_second_run_lists_none(bucket: Bucket) -> None:
    """Goal: garbage goes, everything else stays: claims, young orphans, the two newest of each document."""
    for generation in (1, 2, 3, 4):
        await bucket.claim(generation, hours_old=20 - generation)
        await bucket.index(index_of({A: 1}), generation, hours_old=10 - generation)
        await bucket.put(paths.manifest_key(SHARD, Generation(generation)), TenantManifest().encode())
        document = SourceDocument({"state": "ready"})
        await write_source_document(bucket.store, SHARD, TIMELINE, Generation(generation), document)
    await bucket.layer(A, 1)
    orphan, young = await bucket.layer(B, 2), await bucket.layer(C, 2, hours_old=1)
    before = await bucket.keys()
    report = await bucket.scrub(purge_hours=3)
    gone = before - await bucket.keys()
    assert gone == {
        orphan,
        *(paths.index_key(SHARD, TIMELINE, Generation(number)) for number in (1, 2)),
        *(paths.manifest_key(SHARD, Generation(number)) for number in (1, 2)),
    }
    assert {purged.key for purged in report.purged} == gone
    sources = [paths.source_base_key(SHARD, TIMELINE) + Generation(number).suffix() for number in (1, 2)]
    assert [left.key for left in report.orphans] == [*sources, young]
    assert len((await bucket.scrub(purge_hours=0)).purged) == 3
    report = await bucket.scrub()
    assert (report.findings, report.orphans) == ([], [])
    assert {key for key in before if key.startswith("generations/")} <= await bucket.keys()


async def test_nothing_is_an_orphan_while_a_stale_server_still_writes_the_index(bucket: Bucket) -> None:
    """Goal: what the newest server read stays, even though a server that it overtook replaced the index since."""
    await bucket.layer(A, 1)
    needed = await bucket.layer(B, 1)
    await bucket.claim(2, hours_old=9)
    await bucket.claim(3, hours_old=6)
    await bucket.index(index_of({A: 1}), 2, hours_old=5)
    report = await bucket.scrub(purge_hours=3)
    assert (report.purged, report.orphans, report.in_flight) == ([], [], [needed])
    await bucket.index(index_of({A: 1}), 2, hours_old=7)
    assert [orphan.key for orphan in (await bucket.scrub(purge_hours=3)).purged] == [needed]


async def test_without_claims_the_index_before_protects_what_it_names(bucket: Bucket) -> None:
    await bucket.layer(A, 1)
    named_before, orphan = await bucket.layer(B, 1), await bucket.layer(C, 1)
    await bucket.index(index_of({A: 1, B: 1}), 1)
    await bucket.index(index_of({A: 1}), 2)
    report = await bucket.scrub(purge_hours=3)
    assert ([one.key for one in report.purged], report.in_flight) == ([orphan], [named_before])


async def test_an_index_that_cannot_be_read_protects_all_layers_of_the_tenant(bucket: Bucket) -> None:
    await bucket.claim(2, hours_old=8)
    await bucket.layer(A, 2)
    await bucket.index(index_of({A: 2}), 2)
    unnamed = await bucket.layer(B, 1)
    await bucket.put(paths.index_key(SHARD, OTHER, Generation(1)), b"not an index")
    report = await bucket.scrub(purge_hours=3)
    assert (len(report.errors), report.purged, report.in_flight) == (1, [], [unnamed])


async def test_a_timeline_without_an_index_is_a_relic_and_a_running_import_keeps_its_layers(bucket: Bucket) -> None:
    await bucket.claim(1, hours_old=9)
    layer = await bucket.layer(A, 1)
    report = await bucket.scrub(purge_hours=3)
    prefix = paths.timeline_prefix(SHARD, TIMELINE)
    assert (report.findings, report.relics, report.in_flight) == ([], [prefix], [layer]), "its server may be writing"
    await bucket.claim(2, hours_old=4)
    await write_source_document(bucket.store, SHARD, TIMELINE, Generation(1), SourceDocument({"state": "importing"}))
    report = await bucket.scrub(purge_hours=3)
    assert (report.purged, report.in_flight) == ([], [layer])
    await write_source_document(bucket.store, SHARD, TIMELINE, Generation(1), SourceDocument({"state": "ready"}))
    assert [orphan.key for orphan in (await bucket.scrub(purge_hours=3)).purged] == [layer]


async def test_a_deletion_that_was_begun_is_left_alone(bucket: Bucket) -> None:
    await bucket.claim(2, hours_old=8)
    await bucket.layer(B, 1)
    await bucket.index(index_of({A: 1}, deleted_at="2026-01-01T00:00:00"), 2)
    report = await bucket.scrub(purge_hours=0)
    assert (report.findings, report.orphans, report.purged) == ([], [], [])


async def test_after_a_split_children_protect_what_they_read_of_their_parent(bucket: Bucket) -> None:
    """Goal: only shards of the highest count are judged, and layers below the parent's prefix are the children's."""
    child = TenantShardId(TENANT, ShardNumber(0), ShardCount(2))
    await bucket.claim(3, hours_old=9)
    kept = await bucket.layer(A, 1)
    await bucket.layer(B, 3)
    await bucket.index(index_of({B: 3, C: 3}), 3)
    content = index_of({A: 1}).encode()
    await bucket.put(paths.index_key(child, TIMELINE, Generation(3)), content)
    report = await bucket.scrub(purge_hours=3)
    assert (report.shards, report.findings, report.purged) == (1, [], [])
    await bucket.store.delete([kept])
    assert [finding.where for finding in (await bucket.scrub()).errors] == [kept]


async def test_an_offloaded_timeline_must_be_archived_in_its_index_at_the_same_time(bucket: Bucket) -> None:
    await bucket.layer(A, 1)
    await bucket.index(index_of({A: 1}, archived_at="2026-01-01T00:00:00.5"), 1)
    for archived_at, ancestor, complaints in (
        ("2026-01-01T00:00:01.123456789", None, 0),
        ("2026-01-01T00:00:02", None, 1),
        ("2026-01-01T00:00:02", OTHER, 2),
    ):
        entry = OffloadedTimeline(TIMELINE, ancestor, None, archived_at)
        await bucket.put(paths.manifest_key(SHARD, Generation(1)), TenantManifest((entry,)).encode())
        assert len((await bucket.scrub()).errors) == complaints
    await bucket.put(paths.manifest_key(SHARD, Generation(1)), b"[]")
    assert messages(await bucket.scrub())[0].startswith("tenant manifest is malformed")


class BusyStore(LocalStore):
    """A server compacts while the scrubber looks: when a layer is asked for by its key, the index moves on."""

    def __init__(self, root: Path, *, moves: list[IndexPart]) -> None:
        super().__init__(root)
        self._moves = moves

    async def head(self, key: str) -> StoredObject:
        if self._moves:
            await self.put(paths.index_key(SHARD, TIMELINE, Generation(1)), self._moves.pop(0).encode())
        return await super().head(key)


async def test_a_layer_that_is_compacted_while_we_look_is_not_missing(bucket: Bucket) -> None:
    await bucket.layer(A, 1)
    await bucket.index(index_of({A: 1, B: 1}), 1)
    store = BusyStore(bucket.store.root, moves=[index_of({A: 1})])
    assert (await bucket.scrub(store=store)).findings == []
    await bucket.index(index_of({A: 1, B: 1}), 1)
    moves = [index_of({A: 1, B: 1}, archived_at=f"2026-01-01T00:00:0{n}") for n in range(3)]
    report = await bucket.scrub(store=BusyStore(bucket.store.root, moves=moves))
    assert (report.errors, len(report.warnings)) == ([], 1), "an index that never rests is no proof of damage"


class RevivingStore(LocalStore):
    """Between the two looks of a purge, a server names the layer that was an orphan."""

    looks = 0

    def list_objects(self, prefix: str, **options: Any) -> Any:
        if prefix == f"tenants/{TENANT}":
            self.looks += 1
            if self.looks == 2:
                key = paths.index_key(SHARD, TIMELINE, Generation(2))
                (self.root / key).write_bytes(index_of({A: 1, B: 1}).encode())
        return super().list_objects(prefix, **options)


async def test_a_purge_looks_again_before_it_deletes(bucket: Bucket) -> None:
    await bucket.claim(2, hours_old=8)
    await bucket.layer(A, 1)
    await bucket.index(index_of({A: 1}), 2)
    named_later = await bucket.layer(B, 1)
    report = await bucket.scrub(purge_hours=3, store=RevivingStore(bucket.store.root))
    assert report.purged == []
    assert (await bucket.store.head(named_later)).size_bytes == 5
    await bucket.index(index_of({A: 1}), 2)
    await bucket.scrub(purge_hours=3)
    with pytest.raises(ObjectNotFoundError):
        await bucket.store.head(named_later)
