"""Generations from a storage controller (tenants.md 5.3; remote-storage.md 4.2).

    on disk, attached in gen ≤ the answer's, or secondary ── Attached* gen ─▶ attach in that mode and generation
    on disk, attached in a higher gen ───────────────────── Attached* gen ─▶ secondary, warm: keep files, write nothing
    on disk ─────────────────────────────────────────────── Secondary ────▶ secondary, as it was or warm
    on disk ─────────────────── absent, Detached, Attached* without gen ──▶ removed from this server
    not on disk ─────────────────────────────────────────── anything ─────▶ ignored: a location_config will come

In emergency mode nobody is asked at the start; validation still needs the controller, so deletions only accumulate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pageserver.control.upcall import ReAttachedTenant, UpcallClient
from pageserver.errors import RequestError
from pageserver.ids import Generation, ShardIdentity, StripeSize, TenantShardId
from pageserver.tenant.location import Attached, AttachMode, LocationConfig, Secondary


class ControllerGenerations:
    """What the controller says. `local_data_loss_suspected` is set if it knows tenants of ours and our disk none."""

    answers_at_once = False
    fences_deletions = False

    def __init__(
        self,
        client: UpcallClient,
        *,
        node_id: int,
        register: Mapping[str, Any] | None,
        emergency_mode: bool,
        log: Any,
    ) -> None:
        self._client = client
        self._node_id = node_id
        self._register = register
        self._emergency_mode = emergency_mode
        self._log = log
        self.local_data_loss_suspected = False

    async def start(self, found: Mapping[TenantShardId, LocationConfig]) -> Mapping[TenantShardId, LocationConfig]:
        if self._emergency_mode:
            self._log.error("Emergency mode!  Tenants will be attached unsafely using their last known generation")
            return found
        answer = await self._client.re_attach(
            node_id=self._node_id, register=self._register, empty_local_disk=not found
        )
        wanted = {tenant.shard: tenant for tenant in answer}
        if wanted and not found:
            self.local_data_loss_suspected = True
            self._log.error("local data loss suspected: the storage controller knows tenants here, the disk has none")
        locations: dict[TenantShardId, LocationConfig] = {}
        for shard, location in found.items():
            decided = self._decide(shard, location, wanted.get(shard))
            if decided is not None:
                locations[shard] = decided
        return locations

    async def claim(self, shard: TenantShardId, wanted: int | None) -> Generation:
        if wanted is None:
            raise RequestError("Generation must be set when attaching", shard=shard)
        return Generation(wanted)

    async def validate(self, generations: Mapping[TenantShardId, Generation]) -> Mapping[TenantShardId, bool]:
        return await self._client.validate(generations)

    def found_stale(self, shard: TenantShardId, generation: Generation) -> None:
        self._log.warning("generation is not current any more", tenant=str(shard), generation=generation.number)

    def _decide(
        self, shard: TenantShardId, location: LocationConfig, wanted: ReAttachedTenant | None
    ) -> LocationConfig | None:
        if wanted is None or wanted.mode == "Detached":
            return None
        if wanted.mode == "Secondary":
            return location if isinstance(location.mode, Secondary) else location.as_secondary(warm=True)
        if wanted.generation is None:
            self._log.warning("re-attach gives no generation for an attached tenant", tenant=str(shard))
            return None
        stored = location.mode.generation if isinstance(location.mode, Attached) else None
        if stored is not None and stored > wanted.generation:
            self._log.error(
                "the controller decreased the generation; the tenant starts as secondary",
                tenant=str(shard),
                stored=stored.number,
                given=wanted.generation.number,
            )
            return location.as_secondary(warm=True)
        mode = Attached(wanted.generation, AttachMode(wanted.mode.removeprefix("Attached")))
        return replace(location, mode=mode, shard=self._with_stripe_size(shard, location.shard, wanted.stripe_size))

    def _with_stripe_size(self, shard: TenantShardId, identity: ShardIdentity, stripe_size: int) -> ShardIdentity:
        if stripe_size in (0, identity.stripe_size):
            return identity
        if not identity.is_unsharded():
            self._log.critical(
                "the controller gives another stripe size than is stored",
                tenant=str(shard),
                stored=identity.stripe_size,
                given=stripe_size,
            )
        return replace(identity, stripe_size=StripeSize(stripe_size))
