"""What stays of a deleted timeline: `sources/<shard>/<timeline>/deleted.json-<generation>` (ours).

A server that was overtaken may still hold a timeline when the newer one deletes it, and write its index again under its
own, older generation. Without a word about that the next attach would find a timeline whose layers are gone. So:

    deletion    tombstone under the deleter's generation, then the newest index goes
    load        an index or a source document of a generation not above the tombstone's is what is left, or was written
                again, of a deleted timeline: the deletion is repeated
    creation    of the same id in the same generation removes the tombstone first; in a later one it says nothing

Time travel covers it like everything below `sources/`, a tenant's deletion removes it, and `pagectl scrub` knows it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from pageserver.ids import Generation, IdParseError, TenantShardId, TimelineId
from pageserver.remote import paths
from pageserver.remote.generations import generation_of_key
from pageserver.remote.storage import ObjectStorage

_TOMBSTONE = re.compile(r"deleted\.json-[0-9a-f]{8}")
_SOURCE = re.compile(r"source\.json(-[0-9a-f]{8})?")


@dataclass(slots=True)
class KnownSources:
    """What lies below a shard's `sources/`, up to a generation: the newest document and tombstone of each timeline."""

    documents: dict[TimelineId, Generation] = field(default_factory=dict)
    tombstones: dict[TimelineId, Generation] = field(default_factory=dict)

    def is_over(self, timeline_id: TimelineId, generation: Generation) -> bool:
        """Return whether what was written under `generation` belongs to a timeline that has been deleted."""
        tombstone = self.tombstones.get(timeline_id)
        return tombstone is not None and generation <= tombstone


async def list_sources(storage: ObjectStorage, shard: TenantShardId, generation: Generation) -> KnownSources:
    """List documents and tombstones that are not above `generation`; other keys are passed over."""
    found = KnownSources()
    async for item in storage.list_objects(paths.sources_prefix(shard)):
        directory, _, name = item.key.rpartition("/")
        try:
            timeline_id = TimelineId.parse(directory.rpartition("/")[2])
        except IdParseError:
            continue
        place = found.tombstones if _TOMBSTONE.fullmatch(name) else found.documents if _SOURCE.fullmatch(name) else None
        written = generation_of_key(item.key)
        if place is not None and written <= generation:
            place[timeline_id] = max(written, place.get(timeline_id, written))
    return found


async def write_tombstone(
    storage: ObjectStorage, shard: TenantShardId, timeline_id: TimelineId, generation: Generation, *, deleted_at: str
) -> None:
    """Durable when this returns."""
    content = json.dumps({"deleted_at": deleted_at}, separators=(",", ":")).encode()
    await storage.put(paths.tombstone_key(shard, timeline_id, generation), content)
