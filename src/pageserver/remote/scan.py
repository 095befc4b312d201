"""What a bucket holds of one tenant, without attaching it (http-api.md 4.2, `scan_remote_storage`): a controller that
lost its database adopts tenants from this.

One plain listing of `tenants/<tenant>` finds the tenant with all of its shards, of every shard count, since splits
leave the shards of the count before where they were.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pageserver.ids import Generation, IdParseError, TenantId, TenantShardId
from pageserver.remote import paths
from pageserver.remote.generations import generation_of_key
from pageserver.remote.storage import ObjectStorage
from pageserver.remote.tenant_manifest import TenantManifest

_MANIFEST = re.compile(r"tenant-manifest(-[0-9a-f]{8})?\.json")


@dataclass(frozen=True, slots=True)
class StoredShard:
    """One shard of a tenant. `generation` is the highest of its timelines' indices, None without one; `stripe_size` in
    pages, of the newest manifest up to that generation, if it says so.
    """

    shard: TenantShardId
    generation: int | None
    stripe_size: int | None


async def scan_tenant(storage: ObjectStorage, tenant_id: TenantId) -> list[StoredShard]:
    """Return the shards that have objects, in order. Raises StoreUnavailableError, ManifestDecodeError."""
    indices: dict[TenantShardId, list[Generation]] = {}
    manifests: dict[TenantShardId, list[Generation]] = {}
    async for item in storage.list_objects(f"tenants/{tenant_id}"):
        shard = shard_of_key(item.key)
        if shard is None:
            continue
        indices.setdefault(shard, [])
        name = item.key.rpartition("/")[2]
        if "/timelines/" in item.key and name.startswith(paths.INDEX_NAME):
            indices[shard].append(generation_of_key(name))
        elif _MANIFEST.fullmatch(name):
            manifests.setdefault(shard, []).append(generation_of_key(name))
    return [
        await _describe(storage, shard, max(found, default=Generation(None)), manifests.get(shard, []))
        for shard, found in sorted(indices.items())
    ]


def shard_of_key(key: str) -> TenantShardId | None:
    """Return the shard below whose prefix an object is, None if it is below none."""
    _, _, rest = key.partition("/")
    name, separator, _ = rest.partition("/")
    try:
        shard = TenantShardId.parse(name)
    except IdParseError:
        return None
    # The parser is lenient about case and separator; a key is what we would write, or not ours.
    return shard if separator and str(shard) == name else None


async def _describe(
    storage: ObjectStorage, shard: TenantShardId, newest: Generation, manifests: list[Generation]
) -> StoredShard:
    visible = [generation for generation in manifests if generation <= newest]
    stripe_size = None
    if visible:
        content = await storage.get(paths.manifest_key(shard, max(visible)))
        stripe_size = TenantManifest.decode(content).stripe_size
    return StoredShard(shard, newest.number, stripe_size)
