"""Another source for a timeline: what is stored, what runs afterwards, and what a failure leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageserver.errors import ConflictError, PreconditionFailedError, RequestError, UnavailableError
from pageserver.remote import GenerationClaim, claim_generation
from pageserver.remote.source_document import SourceDocument, read_source_document
from pageserver.tenant import SourceSlot
from tests.unit.tenant.test_lifecycle import attach, follow_primary
from tests.unit.world import BRANCH, ROOT, START, TENANT, FakeWayIn, World, store_of


def way_in_of(world: World) -> FakeWayIn:
    way_in = world.resources.way_in
    assert isinstance(way_in, FakeWayIn)
    return way_in


async def test_a_timeline_goes_on_from_another_primary(tmp_path: Path) -> None:
    """Goal: everything is durable before, the document after; the engine hears of it, and the new source runs."""
    world = await World.start(tmp_path)
    tenant = await attach(world)
    timeline = await follow_primary(tenant)
    store_of(timeline).ingest(START + 0x200)
    await tenant.source_changes.set_primary(ROOT, {"conninfo": "host=other"})
    assert timeline.durable_lsn == START + 0x200
    stored = await read_source_document(world.storage, TENANT, ROOT, tenant.generation)
    assert stored is not None and stored.body["connection"] == "host=other"
    assert store_of(timeline).origin["flavour"] == "stock"
    assert (await tenant.source_changes.describe(ROOT))["connection"] == "host=other"
    assert tenant.detail(ROOT).source.text == "streaming"
    await world.stop()


async def test_a_refused_primary_changes_nothing(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world)
    timeline = await follow_primary(tenant)
    before = timeline.document
    with pytest.raises(RequestError, match="system identifier"):
        await tenant.source_changes.set_primary(ROOT, {"conninfo": "other cluster"})
    assert timeline.document is before
    assert tenant.detail(ROOT).source.text == "streaming", "the old source runs again"
    await world.stop()


async def test_a_document_that_cannot_be_stored_takes_the_preparation_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: no slot is left that nobody reads, and the engine is told again what it was told before."""
    world = await World.start(tmp_path)
    tenant = await attach(world)
    timeline = await follow_primary(tenant)
    before = timeline.document

    async def fail(self: SourceSlot, body: object) -> None:
        raise UnavailableError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(SourceSlot, "save_document", fail)
        with pytest.raises(UnavailableError):
            await tenant.source_changes.set_primary(ROOT, {"conninfo": "host=other"})
    assert way_in_of(world).undone == 1
    assert timeline.document is before
    assert timeline.flavour == SourceDocument(before.body if before else {}).traits.flavour
    await world.stop()


async def test_a_server_that_was_overtaken_leaves_slot_and_document_alone(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world)
    timeline = await follow_primary(tenant)
    before = timeline.document
    claim = GenerationClaim(node_id=9, instance="other", host="other", claimed_at="2026-01-01T00:00:00Z")
    await claim_generation(world.storage, TENANT, claim)
    for change in (
        tenant.source_changes.set_primary(ROOT, {"conninfo": "host=other"}),
        tenant.source_changes.resync(ROOT, force=True),
    ):
        with pytest.raises(PreconditionFailedError, match="newer generation"):
            await change
    assert timeline.document is before
    await world.stop()


async def test_a_resync_is_for_timelines_whose_slot_is_lost(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world)
    timeline = await follow_primary(tenant)
    store_of(timeline).ingest(START + 0x200)
    with pytest.raises(ConflictError, match="not known to be lost"):
        await tenant.source_changes.resync(ROOT, force=False)
    await tenant.source_changes.resync(ROOT, force=True)
    stored = await read_source_document(world.storage, TENANT, ROOT, tenant.generation)
    assert stored is not None and "resync_from_lsn" in stored.body
    await tenant.create_branch(BRANCH, ROOT, None)
    with pytest.raises(PreconditionFailedError, match="follows no primary"):
        await tenant.source_changes.resync(BRANCH, force=True)
    await world.stop()
