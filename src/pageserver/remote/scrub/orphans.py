"""Which objects nothing needs any more, and which only look so (tenants.md 24, remote-storage.md 3.2 and 20).

An orphan is
- a layer that no index of the tenant names and whose generation is below that of its timeline's index, or, in a
  timeline without an index, below the newest generation that the shard is known to have had;
- an index, a manifest, a source document or a document of names that two newer generations of it have replaced;
- a source document of a timeline that has no index and imports nothing, below that same generation: what a creation
  that a crash has ended leaves, since it writes the document first.

Everything else that no index names is *in flight*: the server of that generation may name it with its next index.

Deleting an orphan must be safe whatever an attached server has in memory, since what it read from the bucket is what
it goes on serving. Whoever attaches claims a generation first and reads the index afterwards; only an index that
somebody wrote *after* a newer generation was claimed can name less than what the newest server has read. So:
1. with claims: while the newest index is of an older generation than the newest claim, and not older than that claim,
   nothing in this timeline is an orphan;
2. without (generations come from a storage controller, which this program does not ask): what the index before the
   newest one names is none either, as the newest server may have read that one;
3. a timeline whose index is marked as deleted, or that has a tombstone not older than its index, is left to the
   deletion, which goes on at the next attach;
4. without an index, a timeline whose import runs or may be resumed keeps all that it has;
5. if one index of a tenant cannot be read, no layer of the tenant is an orphan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pageserver.ids import Generation, TimelineId
from pageserver.remote import paths
from pageserver.remote.index_part import IndexPart
from pageserver.remote.scrub.inventory import Generations, ShardInventory, StoredTimeline, TenantInventory
from pageserver.remote.scrub.report import Orphan, OrphanKind
from pageserver.remote.storage import StoredObject

GENERATIONS_KEPT = 2
"""Newest generations of a document that are always kept (remote-storage.md 3.2)."""


@dataclass(frozen=True, slots=True)
class KnownIndices:
    """Decoded indices of one timeline. `newest` is None if there is none."""

    newest: IndexPart | None = None
    before: IndexPart | None = None
    is_importing: bool = False


@dataclass(slots=True)
class Leftovers:
    """What no index names."""

    orphans: list[Orphan] = field(default_factory=list)
    in_flight: list[str] = field(default_factory=list)


def find_leftovers(
    inventory: TenantInventory, indices: Mapping[str, KnownIndices], *, knows_all_indices: bool
) -> Leftovers:
    """Judge all objects of a tenant. `indices` is by the timeline's prefix; without `knows_all_indices` no layer is an
    orphan.
    """
    found = Leftovers()
    named = {
        key
        for shard in inventory.shards.values()
        for timeline in shard.timelines.values()
        if (index := indices[timeline.prefix].newest) is not None
        for key in named_keys(shard, timeline.timeline_id, index)
    }
    found.orphans += _superseded(inventory.names, OrphanKind.NAMES)
    for shard in inventory.shards.values():
        found.orphans += _superseded(shard.manifests, OrphanKind.MANIFEST)
        for timeline in shard.timelines.values():
            found.orphans += _superseded(timeline.indices, OrphanKind.INDEX)
            found.orphans += _superseded(timeline.sources, OrphanKind.SOURCE)
            known = indices[timeline.prefix]
            if timeline.is_buried or (known.newest is not None and known.newest.deleted_at is not None):
                continue
            limit = _orphans_below(shard, timeline, known) if knows_all_indices else Generation(None)
            if known.newest is None:
                listed = {orphan.key for orphan in found.orphans}
                found.orphans += [
                    _orphan(OrphanKind.SOURCE, item)
                    for generation, item in sorted(timeline.sources.items())
                    if generation < limit and item.key not in listed
                ]
            kept = _kept_by_index_before(shard, timeline, known)
            for key, (item, generation) in timeline.layers.items():
                if key in named:
                    continue
                if generation < limit and key not in kept:
                    found.orphans.append(_orphan(OrphanKind.LAYER, item))
                else:
                    found.in_flight.append(key)
    return found


def named_keys(shard: ShardInventory, timeline_id: TimelineId, index: IndexPart) -> Iterable[str]:
    """Yield the keys of all layers that an index names."""
    for name, entry in index.layers.items():
        yield paths.layer_key(shard.shard.tenant_id, entry.shard, timeline_id, name, entry.generation)


def _orphans_below(shard: ShardInventory, timeline: StoredTimeline, known: KnownIndices) -> Generation:
    """Return the generation from which on unnamed layers of a timeline are in flight."""
    newest = timeline.newest_index()
    if newest is None:
        return Generation(None) if known.is_importing else shard.newest_generation
    claimed = max(shard.claims, default=Generation(None))
    was_overtaken = newest < claimed
    if was_overtaken and timeline.indices[newest].modified_at >= shard.claims[claimed].modified_at:
        return Generation(None)
    return newest


def _kept_by_index_before(shard: ShardInventory, timeline: StoredTimeline, known: KnownIndices) -> set[str]:
    if shard.claims or known.before is None:
        return set()
    return set(named_keys(shard, timeline.timeline_id, known.before))


def _superseded(generations: Generations, kind: OrphanKind) -> list[Orphan]:
    return [_orphan(kind, generations[one]) for one in sorted(generations)[:-GENERATIONS_KEPT]]


def _orphan(kind: OrphanKind, item: StoredObject) -> Orphan:
    return Orphan(kind=kind, key=item.key, size_bytes=item.size_bytes, modified_at=item.modified_at, etag=item.etag)
