"""Two servers with the real engine, one layered over a bucket and one in RocksDB, and a dictionary beside them.

The dictionary is the truth. A server that loses what it had not made durable gets it again from there, as a WAL source
would send it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog

from pageserver.config import ServerSettings
from pageserver.errors import NotFoundError, PreconditionFailedError
from pageserver.ids import TimelineId
from pageserver.keyspace.directories import encode_database_directory, encode_relation_directory
from pageserver.keyspace.key import Key
from pageserver.lsn import Lsn
from pageserver.mgmt.models import LocationConfigBody
from pageserver.remote.source_document import Flavour, SourceTraits
from pageserver.tenant import RootParameters, SourceSlot, Tenant
from pageserver.timeline import Timeline, TimelineStatus
from pageserver.timeline.core_engine import CoreEngine
from tests.unit.world import START, TENANT, FakeWayIn, World, eventually

ROOT = TimelineId(b"\x01" * 16)
DATABASE = (1663, 5)
Item = tuple[bytes, bytes]
T = TypeVar("T")

_WAIT_SECONDS = 60
_SILENCE = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
"""Tells of errors only: thousands of steps have thousands of flushes."""

_FIRST_VALUES: list[Item] = [
    (Key.database_directory(), encode_database_directory({DATABASE: False})),
    (Key.relation_directory(*DATABASE), encode_relation_directory([])),
]


@dataclass
class History:
    """One timeline in the dictionary: puts in order, and where it comes from."""

    ancestor: TimelineId | None
    ancestor_lsn: int
    last: int
    cutoff: int
    puts: list[tuple[int, list[Item]]] = field(default_factory=list)


class Dictionary:
    """Every put ever made, by timeline; looks through all of them for each answer."""

    def __init__(self) -> None:
        self.timelines = {ROOT: History(None, 0, START, START, [(START, _FIRST_VALUES)])}

    def put(self, timeline_id: TimelineId, lsn: int, items: list[Item]) -> None:
        history = self.timelines[timeline_id]
        assert lsn > history.last
        history.puts.append((lsn, items))
        history.last = lsn

    def branch(self, new_id: TimelineId, ancestor: TimelineId, lsn: int) -> None:
        self.timelines[new_id] = History(ancestor, lsn, lsn, self.timelines[ancestor].cutoff)

    def find(self, timeline_id: TimelineId, key: bytes, lsn: int) -> bytes | None:
        history = self.timelines[timeline_id]
        for at, items in reversed(history.puts):
            if at <= lsn:
                for put_key, value in items:
                    if put_key == key:
                        return value
        if history.ancestor is None or not Key(key).is_inherited():
            return None
        return self.find(history.ancestor, key, min(lsn, history.ancestor_lsn))

    def children(self, timeline_id: TimelineId) -> list[TimelineId]:
        return [child for child, history in self.timelines.items() if history.ancestor == timeline_id]


class PutWayIn(FakeWayIn):
    """Makes a root timeline of the first values."""

    async def import_base_backup(
        self,
        slot: SourceSlot,
        body: AsyncIterator[bytes],
        *,
        base_lsn: Lsn,
        end_lsn: Lsn,
        pg_version: int,
        flavour: Flavour,
    ) -> None:
        timeline = await slot.begin(RootParameters(pg_version, base_lsn, SourceTraits(flavour)))
        await asyncio.to_thread(timeline.store.put_images, base_lsn, _FIRST_VALUES)
        await timeline.freeze_and_flush()
        await slot.finish({"state": "ready", "flavour": flavour, "pg_version": pg_version})


class Server:
    """One server with one tenant, which can be stopped, killed, detached and started again."""

    def __init__(self, folder: Path, *, is_layered: bool) -> None:
        self.is_layered = is_layered
        self._workdir = folder
        self._bucket = folder / "bucket" if is_layered else None
        # The loop has a thread of its own: a read of a layer that is not here waits for the loop to download it.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"loop of {folder.name}")
        self._thread.start()
        self._world: World | None = None
        self._engine: CoreEngine | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_WAIT_SECONDS)

    @property
    def world(self) -> World:
        assert self._world is not None
        return self._world

    @property
    def tenant(self) -> Tenant:
        return self.world.manager.get(TENANT)

    def timeline(self, timeline_id: TimelineId) -> Timeline:
        return self.tenant.get_timeline(timeline_id)

    def create(self) -> None:
        async def create() -> None:
            await self._open()
            await self._attach()
            await self.tenant.import_base_backup(
                ROOT, _nothing(), base_lsn=START, end_lsn=START, pg_version=16, flavour="stock"
            )

        self.run(create())

    def restart(self, *, flush: bool) -> None:
        """Stop, in good order or as if killed, and start again."""

        async def restart() -> None:
            await self._stop(flush=flush)
            await self._open()

        self.run(restart())

    def detach_and_attach(self) -> None:
        """Leave the tenant to the bucket and take it back; where there is no bucket, be refused."""

        async def detach() -> None:
            if not self.is_layered:
                try:
                    await self.world.manager.detach(TENANT)
                except PreconditionFailedError:
                    return
                raise AssertionError("the only copy was detached")
            await self.world.manager.detach(TENANT)
            assert not list(self._workdir.glob(f"tenants/{TENANT}/timelines/*"))
            await self._attach()

        self.run(detach())

    def put(self, timeline_id: TimelineId, lsn: int, items: list[Item]) -> None:
        self.timeline(timeline_id).store.put_images(lsn, items)

    def branch(self, new_id: TimelineId, ancestor: TimelineId, lsn: int) -> None:
        self.run(self.tenant.create_branch(new_id, ancestor, Lsn(lsn)))

    def flush(self, timeline_id: TimelineId) -> None:
        self.run(self.timeline(timeline_id).freeze_and_flush())

    def delete(self, timeline_id: TimelineId) -> None:
        async def delete() -> None:
            await self.tenant.delete_timeline(timeline_id)
            await eventually(is_gone)

        async def is_gone() -> bool:
            try:
                self.tenant.detail(timeline_id)
            except NotFoundError:
                return True
            return False

        self.run(delete())

    def collect_garbage(self, timeline_id: TimelineId, cutoff: int) -> int:
        """Collect with a horizon that leaves `cutoff`; returns how many versions went."""
        timeline = self.timeline(timeline_id)
        self.run(timeline.freeze_and_flush())
        horizon = int(timeline.last_record_lsn) - cutoff
        return self.run(self.tenant.garbage.collect(timeline, gc_horizon=horizon)).versions_removed

    def catch_up(self, dictionary: Dictionary) -> None:
        """Take again what a crash has lost."""
        for timeline_id, history in dictionary.timelines.items():
            store = self.timeline(timeline_id).store
            for lsn, items in history.puts:
                if lsn > store.last_record_lsn:
                    store.put_images(lsn, items)
            assert store.last_record_lsn == history.last, timeline_id

    def close(self) -> None:
        try:
            if self._world is not None:
                self.run(self._stop(flush=False))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _open(self) -> None:
        self._engine = CoreEngine(ServerSettings(), _SILENCE)
        self._world = await World.start(
            self._workdir,
            bucket=self._bucket,
            way_in=PutWayIn(),
            engine=self._engine,
            log=_SILENCE,
        )

    async def _attach(self) -> None:
        conf: dict[str, Any] = {"pitr_interval": "0s"}
        if not self.is_layered:
            conf["repository"] = "rocksdb"
        body = LocationConfigBody.model_validate({"mode": "AttachedSingle", "tenant_conf": conf})
        await self.world.manager.put_location(TENANT, body.to_request(claims_generations=True), flush_seconds=None)
        await self.tenant.wait_active(10)
        assert all(each.state.status is TimelineStatus.ACTIVE for each in self.tenant.timelines.values())

    async def _stop(self, *, flush: bool) -> None:
        await (self.world.stop() if flush else self.world.kill())
        assert self._engine is not None
        self._engine.close()
        self._world = self._engine = None


async def _nothing() -> AsyncIterator[bytes]:
    """An empty body of a request."""
    return
    yield b""
