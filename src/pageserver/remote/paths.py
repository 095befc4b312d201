"""Object keys and local paths of tenants, timelines, layers and documents (remote-storage.md 2, 3; standalone.md 1,
3).
"""

from __future__ import annotations

from pathlib import Path

from pageserver.ids import Generation, ShardIndex, TenantId, TenantShardId, TimelineId

LAYER_TEMPORARY_SUFFIXES = (".___temp", ".temp_download", ".old")
"""Endings of files in a timeline's directory that never survive a start (layer-files.md 2.4)."""
DIRECTORY_TEMPORARY_SUFFIX = "___temp"
INDEX_NAME = "index_part.json"
SOURCE_NAME = "source.json"
HEATMAP_NAME = "heatmap-v1.json"
INITDB_NAME = "initdb.tar.zst"
PRESERVED_INITDB_NAME = "initdb-preserved.tar.zst"


def tenant_prefix(shard: TenantShardId) -> str:
    """Return the prefix of everything a shard owns, with its trailing slash."""
    return f"tenants/{shard}/"


def timelines_prefix(shard: TenantShardId) -> str:
    return f"tenants/{shard}/timelines/"


def timeline_prefix(shard: TenantShardId, timeline_id: TimelineId) -> str:
    return f"{timelines_prefix(shard)}{timeline_id}/"


def index_base_key(shard: TenantShardId, timeline_id: TimelineId) -> str:
    """Return the key of the index without its generation suffix."""
    return f"{timeline_prefix(shard, timeline_id)}{INDEX_NAME}"


def index_key(shard: TenantShardId, timeline_id: TimelineId, generation: Generation) -> str:
    return f"{index_base_key(shard, timeline_id)}{generation.suffix()}"


def layer_key(
    tenant_id: TenantId, written_by: ShardIndex, timeline_id: TimelineId, layer_name: str, generation: Generation
) -> str:
    """Return a layer's key. The shard is the one recorded in the index, which after a split is not the reader's."""
    shard = TenantShardId(tenant_id, written_by.number, written_by.count)
    return f"{timeline_prefix(shard, timeline_id)}{layer_name}{generation.suffix()}"


def manifest_key(shard: TenantShardId, generation: Generation) -> str:
    """Return the tenant manifest's key: here the suffix comes before the extension."""
    return f"{manifest_base_key(shard)}{generation.suffix()}.json"


def manifest_base_key(shard: TenantShardId) -> str:
    """Return what the keys of all generations of a manifest begin with."""
    return f"{tenant_prefix(shard)}tenant-manifest"


def heatmap_key(shard: TenantShardId) -> str:
    """Return the heatmap's key. It has no generation: the last writer wins."""
    return f"{tenant_prefix(shard)}{HEATMAP_NAME}"


def initdb_key(tenant_id: TenantId, timeline_id: TimelineId) -> str:
    """Return the initdb archive's key: always below the unsharded tenant, without a generation (8)."""
    return f"{timeline_prefix(TenantShardId.unsharded(tenant_id), timeline_id)}{INITDB_NAME}"


def preserved_initdb_key(tenant_id: TenantId, timeline_id: TimelineId) -> str:
    """Return the key of the archive's copy that outlives the timeline."""
    return f"{timeline_prefix(TenantShardId.unsharded(tenant_id), timeline_id)}{PRESERVED_INITDB_NAME}"


def source_base_key(shard: TenantShardId, timeline_id: TimelineId) -> str:
    """Return the key of a WAL source's document without its generation suffix (standalone.md 3)."""
    return f"sources/{shard}/{timeline_id}/{SOURCE_NAME}"


def tombstone_key(shard: TenantShardId, timeline_id: TimelineId, generation: Generation) -> str:
    """Return the key of what stays of a deleted timeline (`tombstones`)."""
    return f"sources/{shard}/{timeline_id}/deleted.json{generation.suffix()}"


def sources_prefix(shard: TenantShardId) -> str:
    return f"sources/{shard}/"


def names_base_key(tenant_id: TenantId) -> str:
    """Return the key of the document of timelines' names without its generation suffix (standalone.md 4)."""
    return f"names/{tenant_id}.json"


def history_prefixes(shard: TenantShardId) -> list[str]:
    """Return the prefixes that time travel brings back: not manifests, heatmaps and claims (remote-storage.md 15;
    standalone.md 1). What all shards share belongs to shard zero.
    """
    tenant_id = shard.tenant_id
    unsharded = TenantShardId.unsharded(tenant_id)
    prefixes = []
    if shard.is_shard_zero():
        prefixes = [timelines_prefix(unsharded), sources_prefix(unsharded), names_base_key(tenant_id)]
    if shard != unsharded:
        prefixes += [timelines_prefix(shard), sources_prefix(shard)]
    return prefixes


def claims_prefix(shard: TenantShardId) -> str:
    return f"generations/{shard}/"


def claim_key(shard: TenantShardId, generation: Generation) -> str:
    assert generation.number is not None, "only a real generation can be claimed"
    return f"{claims_prefix(shard)}{generation.number:08x}.json"


def tenants_directory(workdir: Path) -> Path:
    return workdir / "tenants"


def tenant_directory(workdir: Path, shard: TenantShardId) -> Path:
    return tenants_directory(workdir) / str(shard)


def location_config_path(workdir: Path, shard: TenantShardId) -> Path:
    return tenant_directory(workdir, shard) / "config-v1"


def heatmap_path(workdir: Path, shard: TenantShardId) -> Path:
    return tenant_directory(workdir, shard) / HEATMAP_NAME


def timelines_directory(workdir: Path, shard: TenantShardId) -> Path:
    return tenant_directory(workdir, shard) / "timelines"


def timeline_directory(workdir: Path, shard: TenantShardId, timeline_id: TimelineId) -> Path:
    return timelines_directory(workdir, shard) / str(timeline_id)


def local_layer_name(layer_name: str, generation: Generation) -> str:
    """Return the name of a layer's local file: unlike the object's it carries `-v1` before the generation
    (layer-files.md 2.2).
    """
    return layer_name if generation.number is None else f"{layer_name}-v1{generation.suffix()}"
