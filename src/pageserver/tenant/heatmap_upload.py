"""Telling secondaries which layers are used: when a heatmap is made, what is in it, where it goes (tenants.md 17.2,
17.3; remote-storage.md 7).

Invariants: never from a stale location; never while a timeline is not active, which would look as if its layers were
unused; an upload that is under way ends before its tenant has stopped, so that a deleted tenant gets no late object.
The engine does not tell when a layer was read: its time is when this process first saw it on the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from pageserver.clock import Clock
from pageserver.counts import ServerCounts
from pageserver.errors import UnavailableError
from pageserver.ids import TenantShardId, TimelineId
from pageserver.remote import ObjectStorage, paths
from pageserver.remote.backoff import retry_for_ever
from pageserver.remote.heatmap import (
    Heatmap,
    HeatmapDecodeError,
    HeatmapDigests,
    HeatmapLayer,
    HeatmapTimeline,
    is_worth_uploading,
)
from pageserver.remote.local_store import overwrite_durably
from pageserver.remote.retry import single_attempts
from pageserver.tenant.location import Attached, AttachMode
from pageserver.tenant.state import TenantStatus
from pageserver.tenant.tenant import Tenant
from pageserver.timeline import Timeline, TimelineStatus

_INTERVAL_SECONDS_MAX = 10.0
_INTERVAL_SECONDS_MIN = 1.0
_JITTER = 0.05


class HeatmapNotReadyError(UnavailableError):
    """503: the tenant, or one of its timelines, is not active, or the location is stale."""


@dataclass(slots=True)
class _History:
    """What is known of one shard's heatmaps. `seen` is when a layer was first found on the disk, in seconds."""

    due_at: float
    previous: Heatmap | None = None
    last: HeatmapDigests | None = None
    seen: dict[tuple[TimelineId, str], int] = field(default_factory=dict)
    is_read: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class HeatmapUploader:
    """Uploads the heatmaps of all attached shards of one server."""

    def __init__(
        self,
        workdir: Path,
        *,
        storage: ObjectStorage,
        tenants: Callable[[], Sequence[Tenant]],
        concurrency: int,
        reads_previous: bool,
        clock: Clock,
        random: Random,
        counts: ServerCounts,
        log: Any,
    ) -> None:
        self._workdir = workdir
        self._storage = single_attempts(storage)
        self._tenants = tenants
        self._permits = asyncio.Semaphore(concurrency)
        self._reads_previous = reads_previous
        self._clock = clock
        self._random = random
        self._counts = counts
        self._log = log
        self._histories: dict[TenantShardId, _History] = {}
        self._never = asyncio.Event()

    async def run(self) -> None:
        """Upload what is due, until cancelled."""
        while True:
            await self._clock.sleep(self.start_due())

    def start_due(self) -> float:
        """Start the uploads that are due, each in its tenant's own tasks; return when to look again, in seconds."""
        now = self._clock.monotonic_seconds()
        tenants = [tenant for tenant in self._tenants() if _period(tenant) > 0]
        there = {tenant.shard for tenant in tenants}
        self._histories = {shard: known for shard, known in self._histories.items() if shard in there}
        for tenant in tenants:
            period = _period(tenant)
            history = self._histories.get(tenant.shard)
            if history is None:
                self._histories[tenant.shard] = _History(now + self._random.uniform(0, period))
            elif history.due_at <= now and not history.lock.locked():
                history.due_at = now + period * self._random.uniform(1 - _JITTER, 1 + _JITTER)
                tenant.spawn(self._upload_if_due(tenant), name=f"heatmap of {tenant.shard}")
        shortest = min(map(_period, tenants), default=_INTERVAL_SECONDS_MAX)
        return min(_INTERVAL_SECONDS_MAX, max(_INTERVAL_SECONDS_MIN, shortest))

    async def upload(self, tenant: Tenant, *, only_if_changed: bool) -> bool:
        """Make a heatmap and upload it; return whether it went out. Raises HeatmapNotReadyError.

        Cancellation: an upload that has begun ends first.
        """
        history = self._histories.setdefault(tenant.shard, _History(self._clock.monotonic_seconds()))
        async with history.lock:
            await self._read_previous(tenant, history)
            heatmap = self._make(tenant, history)
            distance = tenant.settings().checkpoint_distance
            if only_if_changed and not is_worth_uploading(heatmap, history.last, checkpoint_distance=distance):
                return False
            content = heatmap.encode()
            began = self._clock.monotonic_seconds()
            await self._put(paths.heatmap_key(tenant.shard), content)
            self._counts.heatmaps_uploaded += 1
            self._counts.heatmap_seconds.observe(self._clock.monotonic_seconds() - began)
            history.last, history.previous = heatmap.digests(), heatmap
            try:
                await asyncio.to_thread(overwrite_durably, paths.heatmap_path(self._workdir, tenant.shard), content)
            except OSError as error:
                self._log.warning("the heatmap was not stored locally", tenant=str(tenant.shard), error=str(error))
            return True

    async def _upload_if_due(self, tenant: Tenant) -> None:
        if _is_stale(tenant):
            return
        try:
            async with self._permits:
                await self.upload(tenant, only_if_changed=True)
        except HeatmapNotReadyError as error:
            self._counts.heatmaps_failed += 1
            self._log.info("no heatmap this time", tenant=str(tenant.shard), reason=str(error))

    async def _put(self, key: str, content: bytes) -> None:
        async def put_whole() -> None:
            putting = asyncio.ensure_future(self._storage.put(key, content))
            try:
                # A cancelled request may still take effect, after the tenant's objects were deleted.
                await asyncio.shield(putting)
            except asyncio.CancelledError:
                await asyncio.wait({putting})
                raise

        await retry_for_ever(put_whole, what=f"put {key}", stop=self._never, clock=self._clock, log=self._log)

    async def _read_previous(self, tenant: Tenant, history: _History) -> None:
        if history.is_read or not self._reads_previous:
            return
        history.is_read = True
        try:
            content = await asyncio.to_thread(paths.heatmap_path(self._workdir, tenant.shard).read_bytes)
            history.previous = Heatmap.decode(content)
        except FileNotFoundError:
            return
        except (HeatmapDecodeError, OSError) as error:
            self._log.warning("the last heatmap is ignored", tenant=str(tenant.shard), error=str(error))
            return
        for timeline in history.previous.timelines:
            history.seen.update(
                {(timeline.timeline_id, layer.name): layer.access_time for layer in timeline.layers if not layer.cold}
            )

    def _make(self, tenant: Tenant, history: _History) -> Heatmap:
        if tenant.state.status is not TenantStatus.ACTIVE:
            raise HeatmapNotReadyError("tenant is not active", tenant=tenant.shard)
        if _is_stale(tenant):
            raise HeatmapNotReadyError("the location is stale: its successor says what is used", tenant=tenant.shard)
        period_ms = int(_period(tenant) * 1000)
        assert tenant.generation.number is not None, "an attached tenant has a generation"
        old = {} if history.previous is None else {each.timeline_id: each for each in history.previous.timelines}
        now = round(self._clock.now().timestamp())
        timelines = tuple(
            self._of_timeline(timeline, old.get(timeline.timeline_id), history, now)
            for timeline in tenant.open_timelines()
        )
        history.seen = {
            (timeline.timeline_id, layer.name): layer.access_time for timeline in timelines for layer in timeline.layers
        }
        return Heatmap(tenant.generation.number, timelines, period_ms or None)

    def _of_timeline(
        self, timeline: Timeline, old: HeatmapTimeline | None, history: _History, now: int
    ) -> HeatmapTimeline:
        if timeline.state.status is not TimelineStatus.ACTIVE:
            raise HeatmapNotReadyError(f"timeline {timeline.timeline_id} is not active")
        index = timeline.remote.index
        rank: dict[str, tuple[bool, int]] = {}
        resident: set[str] = set()
        for layer in timeline.store.layers():
            rank[layer.name] = (not layer.is_l0, layer.lsn_end)
            if layer.is_resident:
                resident.add(layer.name)
        entries = [
            HeatmapLayer(name, index.layers[name], history.seen.get((timeline.timeline_id, name), now))
            for name in sorted(resident & index.layers.keys())
        ]
        # A cold restart must not shrink the heatmap: what was used before stays, until it is here again or gone. What
        # was evicted is not used.
        absent = index.layers.keys() - resident - timeline.residence.evicted
        entries += [layer for layer in (() if old is None else old.layers) if layer.name in absent]
        entries.sort(key=lambda layer: (layer.cold, *rank.get(layer.name, (False, 0))), reverse=True)
        return HeatmapTimeline(timeline.timeline_id, tuple(entries))


def _is_stale(tenant: Tenant) -> bool:
    mode = tenant.effective_location().mode
    return isinstance(mode, Attached) and mode.mode is AttachMode.STALE


def _period(tenant: Tenant) -> float:
    return tenant.settings().heatmap_period.seconds
