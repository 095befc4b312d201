"""From the listing of one tenant's objects to shards, timelines and their parts (remote-storage.md 3.2, tenants.md 24).

    tenants/S/tenant-manifest-g.json, heatmap-v1.json
    tenants/S/timelines/TL/index_part.json-g, initdb.tar.zst, initdb-preserved.tar.zst, <layer>-g
    sources/S/TL/source.json-g, deleted.json-g
    names/T.json-g
    generations/S/g.json

What has another name is kept as an unknown key: it is reported, and never deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from pageserver.ids import Generation, IdParseError, TenantShardId, TimelineId
from pageserver.remote import paths
from pageserver.remote.layer_name import LayerName, LayerNameError
from pageserver.remote.scan import shard_of_key
from pageserver.remote.storage import StoredObject

_SUFFIX = re.compile(r"-([0-9a-f]{8})")
_LAYER = re.compile(r"(.+?__(?:[0-9A-F]{16}-)?[0-9A-F]{16})(?:-([0-9a-f]{8}))?")
_MANIFEST = re.compile(r"tenant-manifest(?:-([0-9a-f]{8}))?\.json")
_SOURCE = re.compile(r"source\.json(?:-([0-9a-f]{8}))?")
_TOMBSTONE = re.compile(r"deleted\.json-([0-9a-f]{8})")
_NAMES = re.compile(r"names/[0-9a-f]{32}\.json(?:-([0-9a-f]{8}))?")
_CLAIM = re.compile(r"([0-9a-f]{8})\.json")

Generations = dict[Generation, StoredObject]


@dataclass(slots=True)
class StoredTimeline:
    """Objects of one timeline. `layers` are by key, each with the generation of its suffix."""

    shard: TenantShardId
    timeline_id: TimelineId
    indices: Generations = field(default_factory=dict)
    layers: dict[str, tuple[StoredObject, Generation]] = field(default_factory=dict)
    sources: Generations = field(default_factory=dict)
    tombstones: Generations = field(default_factory=dict)

    @property
    def is_buried(self) -> bool:
        """Return whether all that is left of it belongs to a timeline that was deleted: the next attach cleans up."""
        written = [*self.indices, *self.sources]
        return bool(self.tombstones) and max(written, default=Generation(None)) <= max(self.tombstones)

    @property
    def prefix(self) -> str:
        return paths.timeline_prefix(self.shard, self.timeline_id)

    def newest_index(self) -> Generation | None:
        """Return the generation of the index that is the truth, None if there is none."""
        return max(self.indices, default=None)

    def index_before(self) -> Generation | None:
        """Return the generation of the index that the newest one replaced."""
        return sorted(self.indices)[-2] if len(self.indices) > 1 else None


@dataclass(slots=True)
class ShardInventory:
    """Objects of one shard. `newest_generation` is the highest that any object or claim of it carries."""

    shard: TenantShardId
    timelines: dict[TimelineId, StoredTimeline] = field(default_factory=dict)
    manifests: Generations = field(default_factory=dict)
    claims: Generations = field(default_factory=dict)
    newest_generation: Generation = field(default_factory=lambda: Generation(None))

    def timeline(self, timeline_id: TimelineId) -> StoredTimeline:
        return self.timelines.setdefault(timeline_id, StoredTimeline(self.shard, timeline_id))

    def note(self, generation: Generation) -> Generation:
        """Remember that the shard had this generation at some time."""
        self.newest_generation = max(self.newest_generation, generation)
        return generation


@dataclass(slots=True)
class TenantInventory:
    """Objects of all shards of one tenant, of every shard count."""

    shards: dict[TenantShardId, ShardInventory] = field(default_factory=dict)
    names: Generations = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def analysed(self) -> list[ShardInventory]:
        """Return the shards of the highest count: those of lower ones are what a split left behind."""
        present = [shard for shard in self.shards.values() if shard.timelines or shard.manifests]
        count = max((shard.shard.shard_count for shard in present), default=0)
        return [shard for shard in present if shard.shard.shard_count == count]


def take_inventory(objects: Iterable[StoredObject]) -> TenantInventory:
    """Sort the objects below `tenants/T`, `sources/T`, `names/T` and `generations/T`."""
    inventory = TenantInventory()
    for item in objects:
        if (match := _NAMES.fullmatch(item.key)) is not None:
            inventory.names[_generation(match[1])] = item
            continue
        shard = shard_of_key(item.key)
        if shard is None:
            inventory.unknown.append(item.key)
            continue
        stored = inventory.shards.setdefault(shard, ShardInventory(shard))
        top, _, below = item.key.split("/", 2)
        place = {"tenants": _place_in_tenant, "sources": _place_source, "generations": _place_claim}.get(top)
        if place is None or not place(stored, below, item):
            inventory.unknown.append(item.key)
    return inventory


def _place_in_tenant(shard: ShardInventory, below: str, item: StoredObject) -> bool:
    if below == paths.HEATMAP_NAME:
        return True
    if match := _MANIFEST.fullmatch(below):
        shard.manifests[shard.note(_generation(match[1]))] = item
        return True
    top, _, rest = below.partition("/")
    name, _, file = rest.partition("/")
    timeline_id = _timeline_id(name)
    if top != "timelines" or timeline_id is None:
        return False
    timeline = shard.timeline(timeline_id)
    if file in (paths.INITDB_NAME, paths.PRESERVED_INITDB_NAME):
        return True
    if file.startswith(paths.INDEX_NAME):
        rest = file.removeprefix(paths.INDEX_NAME)
        match = _SUFFIX.fullmatch(rest)
        if match is None and rest:
            # Known by its beginning, and of no generation: nobody reads it.
            return True
        timeline.indices[shard.note(_generation(match and match[1]))] = item
        return True
    match = _LAYER.fullmatch(file)
    if match is None or not _is_layer_name(match[1]):
        return False
    timeline.layers[item.key] = (item, shard.note(_generation(match[2])))
    return True


def _place_source(shard: ShardInventory, below: str, item: StoredObject) -> bool:
    name, _, file = below.partition("/")
    timeline_id = _timeline_id(name)
    if timeline_id is None:
        return False
    timeline = shard.timeline(timeline_id)
    for pattern, place in ((_SOURCE, timeline.sources), (_TOMBSTONE, timeline.tombstones)):
        if (match := pattern.fullmatch(file)) is not None:
            place[shard.note(_generation(match[1]))] = item
            return True
    return False


def _place_claim(shard: ShardInventory, below: str, item: StoredObject) -> bool:
    match = _CLAIM.fullmatch(below)
    if match is None:
        return False
    shard.claims[shard.note(_generation(match[1]))] = item
    return True


def _generation(digits: str | None) -> Generation:
    return Generation(None if digits is None else int(digits, 16))


def _timeline_id(text: str) -> TimelineId | None:
    try:
        found = TimelineId.parse(text)
    except IdParseError:
        return None
    return found if str(found) == text else None


def _is_layer_name(text: str) -> bool:
    try:
        return str(LayerName.parse(text)) == text
    except LayerNameError:
        return False
