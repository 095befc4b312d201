"""What is wrong with an index, with the layers that it names, and with a manifest: tables of tenants.md 24.

Two deviations. A missing layer of level 0 is an error like every other: the scrubber reads the index again after it
missed the layer, so it cannot have been compacted meanwhile, since the index is replaced before an object goes. An
index of an import that runs (`import_pgdata`) may have no layers yet (remote-storage.md 5.9).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pageserver.ids import TimelineId
from pageserver.lsn import Lsn
from pageserver.remote.index_part import INDEX_VERSION, IndexPart
from pageserver.remote.layer_name import LayerKind, LayerName
from pageserver.remote.scrub.report import Finding, Level
from pageserver.remote.storage import StoredObject
from pageserver.remote.tenant_manifest import OffloadedTimeline, TenantManifest

_ARCHIVED_SECONDS_MAX = 1.0


@dataclass(frozen=True, slots=True)
class Suspect:
    """A layer that an index names and that the listing does not have, or has in another size."""

    key: str
    name: str
    size_bytes: int
    listed_bytes: int | None

    def finding(self, level: Level) -> Finding:
        if self.listed_bytes is None:
            return Finding(self.key, "layer is named by the index, but there is no such object", level)
        return Finding(self.key, f"layer has {self.listed_bytes} bytes, the index says {self.size_bytes}", level)


def judge_index(content: bytes, index: IndexPart, key: str) -> list[Finding]:
    """Judge a decoded index for itself."""
    found = []
    if not 1 <= index.version <= INDEX_VERSION:
        found.append(Finding(key, f"index_part.json version: {index.version}", Level.ERROR))
    outer = Lsn.parse(json.loads(content)["disk_consistent_lsn"])
    if outer != index.disk_consistent_lsn:
        text = f"in TimelineMetadata ({index.disk_consistent_lsn}) and in the index_part ({outer})"
        found.append(Finding(key, f"Mismatching disk_consistent_lsn {text}", Level.ERROR))
    if not index.layers and index.metadata.ancestor_timeline is None and index.import_pgdata is None:
        found.append(Finding(key, "index_part.json has no layers (ancestor_timeline=None)", Level.ERROR))
    for name, entry in index.layers.items():
        if entry.file_size == 0:
            found.append(Finding(key, f"index_part.json contains a layer {name} that has 0 size", Level.ERROR))
    for one, other in find_split_violations(map(LayerName.parse, index.layers)):
        what = "index_part.json contains invalid layer map structure: layer violates the layer map LSN split assumption"
        found.append(Finding(key, f"{what}: layer {one} intersects with layer {other}", Level.WARNING))
    return found


def find_suspects(index: IndexPart, keys: Mapping[str, str], listed: Mapping[str, StoredObject]) -> Iterator[Suspect]:
    """Yield the layers of an index that the listing does not confirm. `keys` are the objects' keys by layer name."""
    for name, entry in index.layers.items():
        item = listed.get(keys[name])
        if item is None or item.size_bytes != entry.file_size:
            yield Suspect(keys[name], name, entry.file_size, None if item is None else item.size_bytes)


def find_split_violations(layers: Iterable[LayerName]) -> Iterator[tuple[LayerName, LayerName]]:
    """Yield each delta layer, of more than one key, with the first other one that it overlaps in keys and in LSNs
    although their LSN ranges differ. Readers rely on such ranges being equal or apart.
    """
    deltas = sorted(
        (layer for layer in layers if layer.kind is LayerKind.DELTA and not _is_of_one_key(layer)),
        key=lambda layer: (layer.lsn_start, layer.lsn_end, layer.key_start),
    )
    open_layers: list[LayerName] = []
    for layer in deltas:
        open_layers = [other for other in open_layers if other.lsn_end > layer.lsn_start]
        for other in open_layers:
            is_same_range = (other.lsn_start, other.lsn_end) == (layer.lsn_start, layer.lsn_end)
            if not is_same_range and other.key_start < layer.key_end and layer.key_start < other.key_end:
                yield layer, other
                break
        open_layers.append(layer)


def judge_manifest(manifest: TenantManifest, indices: Mapping[TimelineId, IndexPart], key: str) -> list[Finding]:
    """Compare a shard's offloaded timelines with their indices. One without an index is dropped at the next attach."""
    return [
        Finding(key, f"offloaded timeline {entry.timeline_id}: {difference}", Level.ERROR)
        for entry in manifest.offloaded_timelines
        if (index := indices.get(entry.timeline_id)) is not None and index.deleted_at is None
        for difference in _differences(entry, index)
    ]


def _differences(entry: OffloadedTimeline, index: IndexPart) -> Iterator[str]:
    if index.archived_at is None:
        yield f"archived_at is {entry.archived_at} in the manifest, and not set in the index"
    elif abs((_moment(entry.archived_at) - _moment(index.archived_at)).total_seconds()) >= _ARCHIVED_SECONDS_MAX:
        yield f"archived_at is {entry.archived_at} in the manifest, and {index.archived_at} in the index"
    ancestor = index.metadata.ancestor_timeline
    if entry.ancestor_timeline_id != ancestor:
        yield f"its ancestor is {entry.ancestor_timeline_id} in the manifest, and {ancestor} in the index"


def _moment(text: str) -> datetime:
    # Nine digits of a fraction are more than Python reads.
    return datetime.fromisoformat(text[:26]).replace(tzinfo=UTC)


def _is_of_one_key(layer: LayerName) -> bool:
    return int(layer.key_end, 16) == int(layer.key_start, 16) + 1
