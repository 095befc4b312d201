"""All tenant shards of this server, by slot (tenants.md 3, 4, 5).

Rule: never say "not found" for a tenant that exists here in any state, since somebody may then attach it elsewhere. A
slot that is being changed holds `InProgress`; whoever put it there takes it out again. Configurations are durable
before what they describe is spawned.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from random import Random

from pageserver.errors import (
    InternalError,
    NotFoundError,
    PageServerError,
    PreconditionFailedError,
    RequestError,
    StoppedError,
)
from pageserver.ids import Generation, TenantId, TenantShardId
from pageserver.remote import GenerationRecord, StoreUnavailableError, paths, read_generations
from pageserver.remote.deletion_queue import DeletionQueue
from pageserver.remote.open_store import versioned_store
from pageserver.remote.scan import StoredShard, scan_tenant
from pageserver.remote.versions import recover
from pageserver.tenant.deletion import check_may_delete, delete_tenant_objects
from pageserver.tenant.heatmap_upload import HeatmapUploader
from pageserver.tenant.local_tenants import LocalTenants
from pageserver.tenant.location import Attached, AttachMode, LocationConfig, Secondary
from pageserver.tenant.primary_slots import decode_documents, drop_slots
from pageserver.tenant.resources import TenantResources
from pageserver.tenant.slots import (
    GenerationDecreaseError,
    InProgress,
    LocationRequest,
    MapState,
    NotAttachedError,
    SecondarySlot,
    Slot,
    SlotBusyError,
    SlotChangingError,
    SlotCounts,
    Slots,
    TenantMapError,
    TenantNotActiveError,
    TenantNotFoundError,
    location_of,
)
from pageserver.tenant.tasks import TaskScope
from pageserver.tenant.tenant import Tenant
from pageserver.tenant.utilization import UtilizationSampler
from pageserver.timeline import check_repository
from pageserver.turns import TurnQueue

_CONFIG_WRITES_MAX = 16
REDO_IDLE_SECONDS = 180.0
_HOUSEKEEPING_SECONDS = 20.0


class TenantManager:
    """The map of slots. One per server."""

    def __init__(self, resources: TenantResources) -> None:
        self.map_state = MapState.INITIALIZING
        self._resources = resources
        self.downloads = resources.downloads
        self.counts = resources.counts
        self._log = resources.log
        self._slots = Slots()
        self._local = LocalTenants(
            resources.workdir,
            clock=resources.clock,
            disk=resources.disk,
            failpoints=resources.failpoints,
            log=resources.log,
        )
        self._tasks = TaskScope()
        self._warmup = TurnQueue(resources.settings.concurrent_tenant_warmup)
        self.heatmaps = HeatmapUploader(
            resources.workdir,
            storage=resources.storage,
            tenants=lambda: [slot for slot in self._slots.values() if isinstance(slot, Tenant)],
            concurrency=resources.settings.heatmap_upload_concurrency,
            reads_previous=resources.settings.load_previous_heatmap,
            clock=resources.clock,
            random=Random(),
            counts=resources.counts,
            log=resources.log,
        )
        eviction = resources.settings.disk_usage_based_eviction
        self.utilization = UtilizationSampler(
            paths.tenants_directory(resources.workdir),
            usable_pct=eviction.max_usage_pct if eviction.enabled else 100,
            count_shards=lambda: len(self._slots),
            sum_wanted=lambda: sum(tenant.all_layers_bytes() for tenant in self.attached()),
            clock=resources.clock,
        )

    # Lifecycle

    async def load_from_disk(self) -> None:
        """Scan `tenants/`, learn the generation of each attached location, start to attach, open the map. Raises
        OSError.

        The deletion queue hears of the generations before any tenant can push a deletion (remote-storage.md 2.6).
        """
        found = await asyncio.to_thread(self._local.scan)
        locations = await self._resources.generations.start(found)
        self._resources.deletions.recover(
            {
                shard: location.mode.generation
                for shard, location in locations.items()
                if isinstance(location.mode, Attached)
            }
        )
        permits = asyncio.Semaphore(_CONFIG_WRITES_MAX)

        async def persist(shard: TenantShardId, location: LocationConfig) -> None:
            async with permits:
                await self._local.write_when_there_is_room(shard, location)

        async with asyncio.TaskGroup() as group:
            for shard, location in locations.items():
                if location != found[shard]:
                    group.create_task(persist(shard, location), name=f"location config of {shard}")
        for shard in found.keys() - locations.keys():
            self._log.warning("Detaching tenant, control plane omitted it in re-attach response", tenant=str(shard))
            await asyncio.to_thread(self._local.purge, shard)
        self.counts.startup_scheduled += sum(isinstance(location.mode, Attached) for location in locations.values())
        for shard, location in locations.items():
            if isinstance(location.mode, Secondary):
                self._slots[shard] = SecondarySlot(location)
            else:
                self._spawn(shard, location, lazy=True)
        self._tasks.spawn(
            self.heatmaps.run(),
            name="heatmap uploads",
            on_failure=lambda error: self._log.error("heatmap uploads ended", error=str(error), exc_info=error),
        )
        self._tasks.spawn(
            self._housekeeping(),
            name="tenant housekeeping",
            on_failure=lambda error: self._log.error("housekeeping ended", error=str(error), exc_info=error),
        )
        self.map_state = MapState.OPEN

    async def shut_down(self) -> None:
        """Flush and stop all tenants in parallel; the map stays readable (tenants.md 8.4)."""
        self.map_state = MapState.SHUTTING_DOWN
        for slot in list(self._slots.values()):
            if isinstance(slot, InProgress):
                await slot.done.wait()
        tenants = [slot for slot in self._slots.values() if isinstance(slot, Tenant)]
        results = await asyncio.gather(*(tenant.shut_down(flush=True) for tenant in tenants), return_exceptions=True)
        for tenant, result in zip(tenants, results, strict=True):
            if isinstance(result, BaseException):
                self._log.error("tenant shutdown failed", tenant=str(tenant.shard), error=str(result), exc_info=result)
        await self._tasks.close()

    # Looking

    def get(self, shard: TenantShardId) -> Tenant:
        """Return an attached tenant in any state. Raises TenantNotFoundError, TenantNotActiveError, TenantMapError."""
        self._check_readable()
        slot = self._slots.get(shard)
        if isinstance(slot, Tenant):
            return slot
        if isinstance(slot, InProgress):
            raise TenantNotActiveError
        if self.map_state is MapState.SHUTTING_DOWN:
            raise TenantMapError("tenant map is shutting down")
        raise TenantNotFoundError(shard=shard)

    def hurry(self, shard: TenantShardId) -> None:
        """A client waits for this shard: attach it before its turn. Fine if it is not here or attached already."""
        slot = self._slots.get(shard)
        if isinstance(slot, Tenant):
            slot.hurry()

    def attached(self) -> list[Tenant]:
        """Return all attached tenants in the order of their ids."""
        self._check_readable()
        return [slot for _, slot in sorted(self._slots.items()) if isinstance(slot, Tenant)]

    def locations(self) -> list[tuple[TenantShardId, LocationConfig | None]]:
        """Return all locations in order; None for a slot that is being changed."""
        self._check_readable()
        return [(shard, location_of(slot)) for shard, slot in sorted(self._slots.items())]

    def location(self, shard: TenantShardId) -> LocationConfig | None:
        """Return one location. Raises NotFoundError with Neon's text."""
        self._check_readable()
        if shard not in self._slots:
            raise NotFoundError("Tenant shard not found", shard=shard)
        return location_of(self._slots[shard])

    def slot_counts(self) -> SlotCounts:
        kinds = [type(slot) for slot in list(self._slots.values())]
        return SlotCounts(
            kinds.count(Tenant), kinds.count(SecondarySlot), kinds.count(InProgress), writes=self._slots.writes
        )

    @property
    def local_data_loss_suspected(self) -> bool:
        return self._resources.generations.local_data_loss_suspected

    @property
    def deletions(self) -> DeletionQueue:
        """The process's deletion queue, for the management API and metrics."""
        return self._resources.deletions

    # Changing

    async def put_location(
        self, shard: TenantShardId, request: LocationRequest, *, flush_seconds: float | None, lazy: bool = False
    ) -> None:
        """Bring one location into the requested state (tenants.md 4.3). Durable on local disk when this returns.
        With `lazy` a shard that was not attached waits for its turn to attach.

        Raises SlotBusyError, GenerationDecreaseError, GenerationTakenError, UnavailableError.
        """
        self._check_changeable()
        if request.mode is None:
            await self.detach(shard)
            return
        assert request.location is not None, "every mode but Detached has a location"
        slot = self._slots.get(shard)
        if isinstance(slot, InProgress):
            raise SlotBusyError
        self._check_repository(slot, request.location)
        if isinstance(slot, SecondarySlot) and isinstance(request.mode, Secondary):
            async with self._changing_config(shard, slot):
                await self._local.write(shard, request.location)
                slot.location = request.location
            return
        if isinstance(slot, Tenant) and isinstance(request.mode, AttachMode):
            wanted = slot.generation if request.generation is None else Generation(request.generation)
            if wanted < slot.generation:
                raise GenerationDecreaseError(wanted=wanted, current=slot.generation)
            takes_back = slot.is_overtaken and request.generation is None and request.mode is not AttachMode.STALE
            if wanted == slot.generation and not takes_back:
                await self._update_attached(slot, request.location.with_generation(wanted), flush_seconds)
                return
        await self._replace(shard, request, lazy=lazy)

    async def read_generations(self, shard: TenantShardId, *, claims_max: int) -> GenerationRecord:
        """Tell who claimed which generation in the store, whether the shard is attached here or not."""
        return await read_generations(self._resources.storage, shard, claims_max=claims_max)

    async def detach(self, shard: TenantShardId) -> None:
        """Shut a shard down and remove its local files. Absent is fine: what is left of it on disk goes. Refused where
        the local disk is the only copy. Raises SlotChangingError.
        """
        async with self._changing(shard, busy=SlotChangingError) as old:
            directory = paths.tenant_directory(self._resources.workdir, shard)
            is_here = old is not None or await asyncio.to_thread(directory.exists)
            if is_here and not self._resources.stores_layers:
                raise PreconditionFailedError(
                    "without remote storage the local disk is the only copy; a detach would lose the tenant",
                    hint="configure [remote_storage], or delete the tenant",
                )
            if isinstance(old, Tenant):
                await old.shut_down(flush=False)
            await asyncio.to_thread(self._local.purge, shard)
            self._forget(shard)
            self._hurry_deletions()

    async def delete(self, shard: TenantShardId) -> None:
        """Delete a shard for good: local files, then all objects below its prefix. Absent is fine; claims stay.

        Raises SlotChangingError, StaleDeletionError, InternalError (the store fails).
        """
        self._check_changeable()

        async def check() -> None:
            if isinstance(old, Tenant):
                await check_may_delete(self._resources, shard, old.generation)

        async def let_go(documents: Mapping[str, bytes]) -> None:
            await drop_slots(self._resources.way_in, decode_documents(documents), log=self._log)

        async def delete_objects() -> None:
            try:
                await delete_tenant_objects(self._resources.storage, shard, check=check, let_go=let_go)
            except StoreUnavailableError as error:
                # A 500, unlike elsewhere: here a 503 says that the slot is busy (http-api.md 4.2).
                raise InternalError(f"the tenant's objects could not be deleted: {error}", shard=shard) from error

        async with self._changing(shard, busy=SlotChangingError) as old:
            await check()
            if isinstance(old, Tenant):
                await old.shut_down(flush=False)
            if not self._resources.stores_layers:
                # Layers are only on this disk: they stay until no index names them.
                await delete_objects()
            await asyncio.to_thread(self._local.purge, shard)
            await delete_objects()
            self._forget(shard)

    def _forget(self, shard: TenantShardId) -> None:
        if shard in self._slots:
            del self._slots[shard]

    async def reset(self, shard: TenantShardId, *, drop_cache: bool) -> None:
        """Attach a shard anew in its generation, from what is stored of it (tenants.md 8.3); with `drop_cache` without
        what is on this disk.

        Raises NotAttachedError, SlotChangingError, PreconditionFailedError (this disk is the only copy).
        """
        self._check_changeable()
        async with self._changing(shard, busy=SlotChangingError) as old:
            if not isinstance(old, Tenant):
                absent, secondary = "Tenant not found when trying to reset", "Tenant is not in attached state"
                raise NotAttachedError(absent if old is None else secondary, shard=shard)
            if drop_cache and not self._resources.stores_layers:
                raise PreconditionFailedError("without remote storage the local disk is the only copy, and no cache")
            location = await asyncio.to_thread(self._local.read, shard)
            if location is None or not isinstance(location.mode, Attached):
                raise NotAttachedError("the tenant's location config cannot be read", shard=shard)
            await old.shut_down(flush=False)
            if drop_cache:
                await asyncio.to_thread(self._local.drop_cache, shard)
            self._spawn(shard, location, lazy=False)

    async def scan_remote_storage(self, tenant_id: TenantId) -> list[StoredShard]:
        """Return what the bucket has of a tenant, attached here or not."""
        return await scan_tenant(self._resources.storage, tenant_id)

    async def time_travel(self, shard: TenantShardId, *, travel_to: datetime, done_if_after: datetime) -> None:
        """Bring a shard's objects back to how they were at a moment (remote-storage.md 15). It must not be here.

        Raises: RequestError, what `remote.versions.recover` raises.
        """
        self._check_changeable()
        if travel_to > done_if_after:
            raise RequestError(f"travel_to {travel_to.isoformat()} is after done_if_after {done_if_after.isoformat()}")
        if shard in self._slots:
            raise RequestError(f"Tenant {shard} is already attached at this pageserver", shard=shard)
        store = versioned_store(self._resources.storage)
        async with self._changing(shard):
            await recover(
                store,
                paths.history_prefixes(shard),
                travel_to=travel_to,
                done_if_after=done_if_after,
                is_stopping=lambda: self.map_state is MapState.SHUTTING_DOWN,
                clock=self._resources.clock,
                log=self._log.bind(tenant=str(shard)),
            )

    def demote(self, shard: TenantShardId, generation: Generation) -> None:
        """Make an attached shard AttachedStale, since its generation is not the newest any more (standalone.md 1).

        Only in memory: the next start claims a generation like every other.
        """
        slot = self._slots.get(shard)
        if isinstance(slot, Tenant) and slot.generation == generation and not slot.is_overtaken:
            self._log.error(
                "a newer generation exists: another server has taken over, nothing more is deleted or acknowledged "
                "(or the store has lost our claim)",
                tenant=str(shard),
                generation=generation.number,
            )
            slot.note_overtaken()

    async def update_config(self, tenant: Tenant, location: LocationConfig) -> None:
        """Store and apply changed settings of an attached tenant, in its generation.

        Raises PreconditionFailedError (a setting that is fixed).
        """
        self._check_repository(tenant, location)
        await self._update_attached(tenant, location, None)

    # Private

    def _check_readable(self) -> None:
        if self.map_state is MapState.INITIALIZING:
            raise TenantMapError("tenant map is still initializing")

    def _check_changeable(self) -> None:
        self._check_readable()
        if self.map_state is MapState.SHUTTING_DOWN:
            raise StoppedError("Shutting down")

    def _check_repository(self, old: Slot | None, location: LocationConfig) -> None:
        """Refuse a repository that cannot be had here, or another one than the tenant has got."""
        wanted = location.overrides.effective(self._resources.settings.tenant_defaults()).repository
        if isinstance(location.mode, Attached):
            check_repository(
                wanted,
                stores_layers=self._resources.stores_layers,
                is_sharded=not location.shard.is_unsharded(),
            )
        if isinstance(old, Tenant) and wanted != old.repository_kind:
            raise PreconditionFailedError(
                f"the tenant's repository is {old.repository_kind} and cannot become {wanted}",
                hint="create another tenant",
            )

    async def _replace(self, shard: TenantShardId, request: LocationRequest, *, lazy: bool) -> None:
        location = request.location
        assert location is not None, "checked by the caller"
        async with self._changing(shard) as old:
            if isinstance(request.mode, AttachMode):
                # Claim before anything is stopped: a refused claim must change nothing.
                generation = await self._resources.generations.claim(shard, request.generation)
                location = location.with_generation(generation)
            # Before anything is stopped as well: on a full disk the location stays what it is.
            await self._local.write(shard, location)
            if isinstance(old, Tenant):
                self._hurry_deletions()
                await old.shut_down(flush=False)
            if isinstance(location.mode, Attached):
                self._spawn(shard, location, lazy=lazy and not isinstance(old, Tenant))
            else:
                self._slots[shard] = SecondarySlot(location)

    async def _update_attached(self, tenant: Tenant, location: LocationConfig, flush_seconds: float | None) -> None:
        async with self._changing_config(tenant.shard, tenant):
            await self._local.write(tenant.shard, location)
            tenant.update_location(location)
        becomes_stale = isinstance(location.mode, Attached) and location.mode.mode is AttachMode.STALE
        if becomes_stale and flush_seconds is not None:
            try:
                async with asyncio.timeout(flush_seconds):
                    await tenant.flush()
            except TimeoutError:
                self._log.warning("flush before the hand-over timed out", tenant=str(tenant.shard))
            except (PageServerError, OSError) as error:
                raise InternalError(f"Failed to flush: {error}") from error

    def _spawn(self, shard: TenantShardId, location: LocationConfig, *, lazy: bool) -> None:
        tenant = Tenant(shard, location, self._resources)
        self._slots[shard] = tenant
        tenant.start(self._warmup if lazy else None, is_startup=self.map_state is MapState.INITIALIZING)

    @asynccontextmanager
    async def _changing_config(self, shard: TenantShardId, slot: Tenant | SecondarySlot) -> AsyncIterator[None]:
        """Write a location's configuration without taking its slot, which goes on serving. Whoever takes the slot waits
        for this: a configuration that lands after a detach would bring the location back at the next start.
        """
        async with slot.changing_config:
            if self._slots.get(shard) is not slot:
                raise SlotBusyError
            yield

    @asynccontextmanager
    async def _changing(
        self, shard: TenantShardId, *, busy: type[PageServerError] = SlotBusyError
    ) -> AsyncIterator[Slot | None]:
        """Hold the slot. Afterwards it has what the block put there, or again what was there before, if that still
        runs, or if the block failed when it was stopped, and files of it are left: then it is Broken (tenants.md 8.1).
        Raises `busy` if somebody else holds it.
        """
        old = self._slots.get(shard)
        if isinstance(old, InProgress):
            raise busy
        marker = InProgress()
        self._slots[shard] = marker
        self._resources.pages.shard_in_transition(shard)
        try:
            if old is not None:
                async with old.changing_config:
                    pass  # A change of its configuration that runs has ended, and none begins.
            yield old
        except BaseException as error:
            directory = paths.tenant_directory(self._resources.workdir, shard)
            is_lost = self._slots.get(shard) is marker and isinstance(old, Tenant) and old.is_stopped
            if is_lost and isinstance(old, Tenant) and await asyncio.to_thread(directory.exists):
                old.break_stopped(str(error))
                self._slots[shard] = old
            raise
        finally:
            if self._slots.get(shard) is marker:
                if old is None or (isinstance(old, Tenant) and old.is_stopped):
                    del self._slots[shard]
                else:
                    self._slots[shard] = old
            now = self._slots.get(shard)
            self._resources.pages.transition_over(shard, now if isinstance(now, Tenant) else None)
            marker.done.set()

    def _hurry_deletions(self) -> None:
        """Have deletions of a generation executed while it still is the newest; nobody waits for it (11.5)."""
        self._tasks.spawn(
            self._resources.deletions.flush_execute(),
            name="advisory deletion flush",
            on_failure=lambda error: self._log.info("advisory deletion flush ended", error=str(error)),
        )

    async def _housekeeping(self) -> None:
        while True:
            await self._resources.clock.sleep(_HOUSEKEEPING_SECONDS)
            for tenant in self.attached():
                await asyncio.to_thread(tenant.stop_idle_redo, REDO_IDLE_SECONDS)
