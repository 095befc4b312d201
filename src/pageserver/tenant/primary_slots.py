"""Replication slots at primaries of timelines that are deleted (standalone.md 3: dropped, or reported).

    timeline  document read ─▶ marked as deleted ─▶ slot dropped ─▶ document deleted ─▶ the rest
    tenant    documents read ─▶ indices deleted, still ours ─▶ slots dropped ─▶ the rest, documents too

Invariant: a slot is dropped only when the deletion is certain, and before the document that tells where it is goes. A
crash before that is repeated with the deletion. The deletion never fails because of a slot: a primary that does not
answer may be gone for good. Then the log says at level `error` which slot retains WAL there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from pageserver.errors import PageServerError
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.remote import ObjectStorage
from pageserver.remote.source_document import SourceDocument, read_source_document
from pageserver.tenant.way_in import WayIn

_AT_ONCE = 8


async def read_document_patiently(
    storage: ObjectStorage, shard: TenantShardId, timeline_id: TimelineId, generation: Generation, *, log: Any
) -> SourceDocument | None:
    """Return the document of a timeline that is to be deleted. One that cannot be read is reported, and none."""
    try:
        return await read_source_document(storage, shard, timeline_id, generation)
    except PageServerError as error:
        log.error(
            "a replication slot may still retain WAL at a primary: the source's document cannot be read",
            timeline=str(timeline_id),
            error=str(error),
        )
        return None


async def drop_slots(way_in: WayIn, documents: Mapping[str, SourceDocument], *, log: Any) -> None:
    """Drop the slots of these documents, by timeline, several at once. What fails is reported in the log."""
    permits = asyncio.Semaphore(_AT_ONCE)

    async def drop(timeline: str, document: SourceDocument) -> None:
        async with permits:
            try:
                slot = await way_in.drop_slot(document)
            except PageServerError as error:
                log.error(
                    "the replication slot of a deleted timeline could not be dropped, and retains WAL at its primary",
                    timeline=timeline,
                    connection=document.body.get("connection"),
                    slot=document.body.get("slot"),
                    error=str(error),
                    hint="drop it there with pg_drop_replication_slot",
                )
                return
        if slot is not None:
            log.info("replication slot dropped", timeline=timeline, slot=slot)

    await asyncio.gather(*(drop(timeline, document) for timeline, document in documents.items()))


def decode_documents(contents: Mapping[str, bytes]) -> dict[str, SourceDocument]:
    """Return the documents among objects, by timeline; `contents` has one key of each. Garbage is left out: where its
    slot is, nobody knows.
    """
    found = {}
    for key, content in contents.items():
        try:
            body = json.loads(content)
        except ValueError:
            continue
        if isinstance(body, dict):
            found[key.split("/")[2]] = SourceDocument(body)
    return found
