"""The page service's Python side: who is served, and answers to the rare questions of the connection loop.

The loop itself is compiled (`crates/pageserve`), finds timelines through weak handles and never waits for us on the way
to a page. Its questions arrive through the event loop: make a base backup, activate a tenant, grant a lease, write a
log line.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pageserver import _core
from pageserver.config import ServerSettings, Throttle
from pageserver.counts import STARTUP_BOUNDS, Histogram, histograms
from pageserver.errors import PageServerError
from pageserver.ids import ShardIndex, TenantId, TenantShardId, TimelineId
from pageserver.repository import ObjectTimeline
from pageserver.serve.backups import send_backup
from pageserver.tenant import Tenant, TenantFacts, TenantManager, TenantStatus
from pageserver.timeline import Timeline
from pageserver.timeline.state import TimelineStatus


@dataclass(frozen=True, slots=True)
class PageServiceMetrics:
    """`service` and the values of `timelines` are what `_core.PageService.metrics` and `ServedTimeline.metrics` say."""

    service: Mapping[str, Any]
    timelines: Mapping[tuple[TenantShardId, TimelineId], Mapping[str, Any]]
    backup_seconds: Mapping[str, Histogram]


BACKUPS_MAX = 8
"""Archives made at once; more wait for their turn."""
_STOP_SECONDS = 5.0
_REFILL_SECONDS_MAX = 365 * 86400.0
"""Longer ones would overflow, times the size of a bucket."""


class PageServiceRoom:
    """Owns the compiled page service. Tenants tell it what to serve before and while it accepts connections."""

    def __init__(self, settings: ServerSettings, log: Any) -> None:
        pipelining = settings.page_service_pipelining
        self._log = log
        self._manager: TenantManager | None = None
        self._in_transition: set[TenantShardId] = set()
        self._served: dict[tuple[TenantShardId, TimelineId], _core.ServedTimeline] = {}
        self._throttles: dict[TenantShardId, Throttle] = {}
        self.backup_seconds = histograms(("ok", "error", "client_error"), STARTUP_BOUNDS)
        self._counting = threading.Lock()
        self._backups = ThreadPoolExecutor(max_workers=BACKUPS_MAX, thread_name_prefix="backup")
        self._service = _core.PageService(
            listen=_numeric(settings.listen_pg_addr),
            handler=self,
            event_loop=asyncio.get_running_loop(),
            wait_lsn_timeout_seconds=settings.wait_lsn_timeout.seconds,
            max_batch_size=pipelining.max_batch_size if pipelining.mode == "pipelined" else 1,
            batching=pipelining.batching,
        )

    def metrics(self) -> PageServiceMetrics:
        """Return everything that is counted, as the compiled service gives it."""
        return PageServiceMetrics(
            self._service.metrics(),
            {key: served.metrics() for key, served in list(self._served.items())},
            self.backup_seconds,
        )

    async def start(self, manager: TenantManager) -> None:
        """Begin to accept connections. Raises OSError (the address is taken)."""
        self._manager = manager
        await asyncio.to_thread(self._service.start)

    async def stop_accepting(self) -> None:
        self._service.stop_accepting()

    async def stop(self) -> None:
        """End all connections; those that do not go in time are left behind with a warning."""
        if not await asyncio.to_thread(self._service.stop, _STOP_SECONDS):
            self._log.warning("some page service connections did not end in time")
        await asyncio.to_thread(self._backups.shutdown, cancel_futures=True)

    # What tenants tell (tenant/resources.py, PageRegistry)

    def tenant_changed(self, tenant: TenantFacts) -> None:
        if tenant.shard in self._in_transition and tenant.state.status is TenantStatus.STOPPING:
            return
        identity = tenant.location.shard
        self._service.set_shard(
            bytes(tenant.shard.tenant_id),
            (identity.number, identity.count, identity.stripe_size),
            tenant.state.status.value,
            tenant.state.reason,
        )
        self._set_throttle(tenant.shard, tenant.settings().timeline_get_throttle)

    def tenant_gone(self, shard: TenantShardId) -> None:
        for key in [key for key in self._served if key[0] == shard]:
            del self._served[key]
        if shard not in self._in_transition:
            self._throttles.pop(shard, None)
            self._service.remove_shard(bytes(shard.tenant_id), _index(shard))

    def shard_in_transition(self, shard: TenantShardId) -> None:
        self._in_transition.add(shard)
        # No key is mapped to a shard in transition, so it needs no stripe size.
        self._service.set_shard(bytes(shard.tenant_id), (*_index(shard), 0), "InTransition")

    def transition_over(self, shard: TenantShardId, tenant: TenantFacts | None) -> None:
        self._in_transition.discard(shard)
        if tenant is None:
            self.tenant_gone(shard)
        else:
            self.tenant_changed(tenant)

    def attach(self, timeline: Timeline) -> None:
        shard, store = timeline.tenant_shard_id, timeline.store
        source = store.page_source if isinstance(store, ObjectTimeline) else store
        assert isinstance(source, _core.TimelineStore | _core.PageBridge), "pages go through the compiled service"
        self._served[shard, timeline.timeline_id] = self._service.attach_timeline(
            bytes(shard.tenant_id), _index(shard), bytes(timeline.timeline_id), source
        )

    def detach(self, timeline: Timeline) -> None:
        shard = timeline.tenant_shard_id
        was_served = self._served.pop((shard, timeline.timeline_id), None) is not None
        # Its clients shall find out what has become of it (page-service.md 3.3, 3.5).
        is_broken = was_served and timeline.state.status is TimelineStatus.BROKEN
        self._service.close_timeline(
            bytes(shard.tenant_id),
            _index(shard),
            bytes(timeline.timeline_id),
            reconnect=is_broken,
            state=timeline.state.status.value if is_broken else None,
        )

    # What the service asks (in the event loop; must not block)

    def backup(self, request: _core.BackupRequest, sink: _core.BackupSink) -> None:
        """Make an archive in a thread."""
        try:
            tenant = self._tenant(request.tenant_id, request.shard)
            timeline = tenant.get_timeline(TimelineId(request.timeline_id))
        except PageServerError as error:
            self._observe_backup("error", time.monotonic(), request)
            sink.fail("not_found", str(error))
            return
        lazy_slru = tenant.settings().lazy_slru_download
        self._backups.submit(self._send_backup, timeline, request, sink, lazy_slru)

    def lease(
        self, tenant_id: bytes, shard: tuple[int, int], timeline_id: bytes, lsn: int, answer: _core.LeaseAnswer
    ) -> None:
        """Leases come with garbage collection; until then nothing is collected that one could protect."""
        answer.fail("error", "lsn leases are not supported yet")

    def activate(self, tenant_id: bytes, shard: tuple[int, int]) -> None:
        """A request waits for this shard: it attaches before its turn (tenants.md 6.2)."""
        if self._manager is not None:
            self._manager.hurry(_shard_id(tenant_id, shard))

    def receiver_status(
        self, tenant_id: bytes, shard: tuple[int, int], timeline_id: bytes, answer: _core.StatusAnswer
    ) -> None:
        """Somebody has waited in vain for WAL and is about to be told so."""
        with contextlib.suppress(PageServerError):
            answer.give(self._tenant(tenant_id, shard).detail(TimelineId(timeline_id)).source.text)

    def log(self, level: str, text: str) -> None:
        if level == "critical":
            # Alerts look at how such a message begins (metrics.md 5).
            self._log.critical(text)
        else:
            getattr(self._log, level)("page service", text=text)

    def _tenant(self, tenant_id: bytes, shard: tuple[int, int]) -> Tenant:
        assert self._manager is not None, "questions come after the start"
        return self._manager.get(_shard_id(tenant_id, shard))

    def _set_throttle(self, shard: TenantShardId, throttle: Throttle) -> None:
        """Replace the bucket if its settings are new (page-service.md 4.5)."""
        if self._throttles.get(shard, Throttle()) == throttle:
            return
        self._throttles[shard] = throttle
        interval_seconds = min(throttle.refill_interval.seconds, _REFILL_SECONDS_MAX)
        bucket = (throttle.initial, throttle.max, interval_seconds, throttle.refill_amount)
        self._service.set_throttle(bytes(shard.tenant_id), _index(shard), bucket if throttle.task_kinds else None)

    def _send_backup(
        self, timeline: Timeline, request: _core.BackupRequest, sink: _core.BackupSink, lazy_slru: bool
    ) -> None:
        started = time.monotonic()
        try:
            is_complete = send_backup(timeline, request, sink, mtime=int(time.time()), lazy_slru=lazy_slru)
        except Exception as error:
            expected = isinstance(error, PageServerError)
            self._log.error(
                "base backup failed",
                timeline=str(timeline.timeline_id),
                error=str(error),
                exc_info=None if expected else error,
            )
            self._observe_backup("error", started, request)
            return
        if is_complete or timeline.state.status is TimelineStatus.ACTIVE:
            self._observe_backup("ok" if is_complete else "client_error", started, request)

    def _observe_backup(self, result: str, started: float, request: _core.BackupRequest) -> None:
        """Count the time of a base backup; that of a full one tells nothing (page-service.md 6.13)."""
        if request.full:
            return
        with self._counting:
            self.backup_seconds[result].observe(time.monotonic() - started)


def _index(shard: TenantShardId) -> tuple[int, int]:
    return shard.shard_number, shard.shard_count


def _shard_id(tenant_id: bytes, shard: tuple[int, int]) -> TenantShardId:
    index = ShardIndex.from_bytes(bytes(shard))
    return TenantShardId(TenantId(tenant_id), index.number, index.count)


def _numeric(address: str) -> str:
    """Return `host:port` with the host's address in place of its name. Raises OSError."""
    host, _, port = address.rpartition(":")
    family, _, _, _, target = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    numeric = str(target[0])
    return f"[{numeric}]:{port}" if family == socket.AF_INET6 else f"{numeric}:{port}"
