"""A small world for tests without the compiled engine: a store that keeps values in memory and writes made-up layer
files.

`FakeStore` fits the protocol of `timeline/engine.py` as far as decisions can tell: freezing, flushing, layers on disk,
failing when told to.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

import structlog

from pageserver.clock import SystemClock
from pageserver.config import RepositoryKind, ServerSettings, parse_settings
from pageserver.disk_errors import DiskGuard
from pageserver.errors import MissingKeyError, NotFoundError, PageServerError, PreconditionFailedError, RequestError
from pageserver.failpoints import Failpoints
from pageserver.ids import Generation, TenantId, TenantShardId, TimelineId
from pageserver.lsn import Lsn
from pageserver.remote import GenerationClaim, LayerName, LocalStore, paths
from pageserver.remote.deletion_queue import DeletionQueue
from pageserver.remote.local_store import new_file, sync_directory
from pageserver.remote.source_document import Flavour, SourceDocument, SourceTraits
from pageserver.tenant import RootParameters, SourceSlot, TenantFacts, TenantManager, TenantResources, WalSource
from pageserver.tenant.bucket_generations import BucketGenerations
from pageserver.tenant.way_in import PreparedSource
from pageserver.timeline import DownloadCounts, Engine, RedoPool, Repository, SourceStatus, StoreParameters, Timeline
from pageserver.timeline.repository import LayeredRepository

TENANT = TenantShardId(TenantId(bytes.fromhex("aa" * 16)))
ROOT = TimelineId(bytes.fromhex("11" * 16))
BRANCH = TimelineId(bytes.fromhex("22" * 16))
START = Lsn(0x2000028)

_FULL = "0" * 36 + "-" + "F" * 36
_instances = itertools.count(1)


@dataclass(frozen=True)
class FakeLayer:
    name: str
    file_size: int
    kind: str = "delta"
    key_start: bytes = bytes(18)
    key_end: bytes = b"\xff" * 18
    lsn_start: int = 0
    lsn_end: int = 0
    is_l0: bool = True
    is_resident: bool = True


@dataclass(frozen=True)
class FakeOpenLayer:
    size_bytes: int
    lsn_start: int
    age_seconds: float = 0.0


@dataclass
class FakeStore:
    parameters: StoreParameters
    values: dict[bytes, bytes] = field(default_factory=dict)
    named: dict[str, FakeLayer] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    frozen: list[tuple[int, int]] = field(default_factory=list)
    size_bytes: int = 0
    fail_flush: Exception | None = None
    is_shut_down: bool = False

    def __post_init__(self) -> None:
        self.last_record_lsn = int(self.parameters.last_record_lsn)
        self.prev_record_lsn = int(self.parameters.prev_record_lsn)
        self.disk_consistent_lsn = int(self.parameters.disk_consistent_lsn)
        self.gc_cutoff = int(self.parameters.gc_cutoff_lsn)
        self.next_open_at = int(self.parameters.next_open_layer_at)

    def ingest(self, lsn: int, size_bytes: int = 100) -> None:
        self.prev_record_lsn, self.last_record_lsn = self.last_record_lsn, lsn
        self.size_bytes += size_bytes

    def record_lsns(self) -> tuple[int, int]:
        return self.last_record_lsn, self.prev_record_lsn

    def put_images(self, lsn: int, items: list[tuple[bytes, bytes]]) -> None:
        self.values.update(items)
        self.ingest(lsn)

    def rel_size(self, spc: int, db: int, rel: int, fork: int, lsn: int) -> int | None:
        raise NotImplementedError

    def set_disk_consistent_lsn(self, lsn: int) -> None:
        self.disk_consistent_lsn = lsn

    def hold_reads(self) -> None:
        raise NotImplementedError

    def release_reads(self, cutoff: int) -> None:
        raise NotImplementedError

    def set_origin(self, **traits: Any) -> None:
        self.origin = traits

    def set_relation_directory_v2_from(self, lsn: int) -> None:
        self.relation_directory_v2_from = lsn

    def set_gaps(self, gaps: Sequence[tuple[int, int]]) -> None:
        self.gaps = list(gaps)

    def resume_at(self, lsn: int) -> None:
        assert lsn > self.last_record_lsn and not self.size_bytes and not self.frozen
        self.last_record_lsn, self.prev_record_lsn, self.disk_consistent_lsn = lsn, 0, lsn

    def set_gc_cutoff(self, lsn: int) -> None:
        self.gc_cutoff = lsn

    def add_layers(self, layers: Sequence[tuple[str, str | PathLike[str], int]]) -> None:
        for name, path, file_size in layers:
            assert self.parameters.download is not None or Path(path).stat().st_size == file_size
            self.named[name], self.paths[name] = FakeLayer(name, file_size), Path(path)

    def evict_layers(self, names: list[str]) -> None:
        for name in names:
            if name not in self.named:
                raise NotFoundError(f"layer {name} is not in the layer map")
            if self.parameters.download is None:
                raise RequestError(f"layer {name} is nowhere else")
            self.paths[name].unlink(missing_ok=True)

    def remove_layers(self, names: list[str]) -> None:
        for name in names:
            del self.named[name]

    def layers(self) -> list[Any]:
        return [replace(layer, is_resident=self.paths[layer.name].exists()) for layer in self.named.values()]

    def get(self, key: bytes, lsn: int) -> bytes:
        if key not in self.values:
            raise MissingKeyError(key=key, lsn=lsn)
        return self.values[key]

    def get_many(self, keys: list[bytes], lsn: int) -> list[bytes | None]:
        return [self.values.get(key) for key in keys]

    def scan(self, start: bytes, end: bytes, lsn: int) -> list[tuple[bytes, bytes]]:
        return sorted((key, value) for key, value in self.values.items() if start <= key < end)

    def slru_segment(self, kind: int, segno: int, lsn: int) -> bytes:
        raise MissingKeyError(key=bytes(18), lsn=lsn)

    def open_layer(self) -> FakeOpenLayer | None:
        return FakeOpenLayer(self.size_bytes, self.next_open_at) if self.size_bytes else None

    def frozen_layers(self) -> int:
        return len(self.frozen)

    def freeze(self) -> int | None:
        if not self.size_bytes:
            return None
        end = self.last_record_lsn + 1
        self.frozen.append((self.next_open_at, end))
        self.next_open_at, self.size_bytes = end, 0
        return end

    def flush_oldest(self, generation: int | None) -> FakeLayer | None:
        if not self.frozen:
            return None
        if self.fail_flush is not None:
            raise self.fail_flush
        start, end = self.frozen[0]
        layer = self.write_layer(f"{_FULL}__{start:016X}-{end:016X}", generation)
        del self.frozen[0]
        self.disk_consistent_lsn = end - 1
        return layer

    def write_layer(self, name: str, generation: int | None) -> FakeLayer:
        content = name.encode()
        local = paths.local_layer_name(str(LayerName.parse(name)), Generation(generation))
        self.paths[name] = self.parameters.directory / local
        # As the engine does: written, synced, renamed, directory synced.
        with new_file(temporary := self.paths[name].with_name(f"{name}.{next(_instances):x}.___temp")) as file:
            file.write(content)
        temporary.rename(self.paths[name])
        sync_directory(self.parameters.directory)
        self.named[name] = FakeLayer(name, len(content))
        return self.named[name]

    def shutdown(self) -> None:
        self.is_shut_down = True


class FakeEngine:
    def __init__(self) -> None:
        self.stores: list[FakeStore] = []

    def open_store(self, parameters: StoreParameters) -> FakeStore:
        self.stores.append(FakeStore(parameters))
        return self.stores[-1]

    def make_repository(self, kind: RepositoryKind, directory: Path) -> Repository:
        return LayeredRepository(self.open_store)

    def open_redo(self, shard: TenantShardId) -> RedoPool | None:
        return None


class FakePages:
    def __init__(self) -> None:
        self.attached: set[TimelineId] = set()
        self.tenants: set[TenantShardId] = set()
        self.in_transition: set[TenantShardId] = set()

    def tenant_changed(self, tenant: TenantFacts) -> None:
        self.tenants.add(tenant.shard)

    def tenant_gone(self, shard: TenantShardId) -> None:
        self.tenants.discard(shard)

    def shard_in_transition(self, shard: TenantShardId) -> None:
        self.in_transition.add(shard)

    def transition_over(self, shard: TenantShardId, tenant: TenantFacts | None) -> None:
        self.in_transition.remove(shard)
        assert tenant is None or tenant.shard in self.tenants

    def attach(self, timeline: Timeline) -> None:
        assert timeline.tenant_shard_id in self.tenants
        self.attached.add(timeline.timeline_id)

    def detach(self, timeline: Timeline) -> None:
        self.attached.discard(timeline.timeline_id)


class FakeSource:
    """Imports an image layer if it has to, then does nothing; `script` may make it fail."""

    def __init__(self, slot: SourceSlot, way_in: FakeWayIn) -> None:
        self.slot = slot
        self.way_in = way_in

    async def run(self) -> None:
        document = self.slot.document
        assert document is not None
        if document.is_importing:
            if self.way_in.fail_import is not None:
                raise self.way_in.fail_import
            timeline = await self.slot.begin(
                RootParameters(16, START, SourceTraits("stock"), readable_from=START + 0x100)
            )
            await write_image(timeline)
            if self.way_in.die_before_finish:
                return
            await self.slot.finish({**document.body, "state": "ready"})

    def status(self) -> SourceStatus:
        return SourceStatus(text="streaming", connection="host=primary")


class FakeWayIn:
    def __init__(self) -> None:
        self.fail_import: Exception | None = None
        self.die_before_finish = False
        self.initdb_began = asyncio.Event()
        self.initdb_may_end: asyncio.Event | None = None
        self.undone = 0
        self.dropped_slots: list[str] = []
        self.fail_drop: PageServerError | None = None
        self.drop_may_go: asyncio.Event | None = None

    async def prepare_primary(self, slot: SourceSlot, options: Mapping[str, Any]) -> Mapping[str, Any]:
        if options.get("conninfo") == "minimal":
            raise RequestError("wal_level is minimal", hint="set it to replica")
        return {"state": "importing", "flavour": "stock", "pg_version": 16, "connection": options["conninfo"]}

    async def prepare_takeover(self, slot: SourceSlot, options: Mapping[str, Any]) -> PreparedSource:
        if options.get("conninfo") == "other cluster":
            raise RequestError("the primary's system identifier is another one")

        async def undo() -> None:
            self.undone += 1

        return PreparedSource({"flavour": "stock", "pg_version": 16, "connection": options["conninfo"]}, undo)

    def document_of_resync(self, slot: SourceSlot) -> Mapping[str, Any]:
        if slot.document is None or "connection" not in slot.document.body:
            raise PreconditionFailedError("the timeline follows no primary")
        return {**slot.document.body, "resync_from_lsn": "0/0"}

    async def describe_source(self, slot: SourceSlot) -> Mapping[str, Any]:
        return {} if slot.document is None else slot.document.body

    async def drop_slot(self, document: SourceDocument) -> str | None:
        if self.drop_may_go is not None:
            await self.drop_may_go.wait()
        if self.fail_drop is not None:
            raise self.fail_drop
        if "connection" not in document.body:
            return None
        self.dropped_slots.append(document.body["connection"])
        return "pageserver_slot"

    def open_source(self, slot: SourceSlot) -> WalSource | None:
        if slot.document is None or "connection" not in slot.document.body:
            return None
        return FakeSource(slot, self)

    def document_of_branch(
        self, document: SourceDocument | None, *, branch_lsn: Lsn, pg_version: int
    ) -> Mapping[str, Any]:
        body = {"flavour": "neon"} if document is None else document.body
        return {key: value for key, value in body.items() if key != "connection"}

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
        content = b"".join([piece async for piece in body])
        timeline = await slot.begin(RootParameters(pg_version, base_lsn, SourceTraits(flavour)))
        if content != b"good":
            raise RequestError("invalid tar EOF marker")
        document = {"state": "ready", "flavour": flavour, "pg_version": pg_version, "backup_start_lsn": str(base_lsn)}
        await slot.save_document(document)
        await write_image(timeline, base_lsn)
        slot.activate()

    async def make_data_directory(self, directory: Path, pg_version: int) -> Flavour:
        if self.fail_import is not None:
            raise self.fail_import
        self.initdb_began.set()
        if self.initdb_may_end is not None:
            await self.initdb_may_end.wait()
        await asyncio.to_thread(fake_data_directory, directory, pg_version)
        return "stock"

    async def import_data_directory(
        self, slot: SourceSlot, directory: Path, *, pg_version: int, flavour: Flavour
    ) -> None:
        found = int(await asyncio.to_thread((directory / "PG_VERSION").read_text))
        if found != pg_version:
            raise RequestError(f"the copy is of PostgreSQL {found}")
        timeline = await slot.begin(RootParameters(pg_version, START, SourceTraits(flavour)))
        await slot.save_document({"state": "ready", "flavour": flavour, "pg_version": pg_version})
        layer = store_of(timeline).write_layer(f"{_FULL}__{int(START):016X}", timeline.generation.number)
        store_of(timeline).set_disk_consistent_lsn(START)
        timeline.remote.schedule_layers({layer.name: layer.file_size})
        store_of(timeline).ingest(START + 0x78)
        await timeline.freeze_and_flush()
        slot.activate()

    async def import_wal(self, slot: SourceSlot, body: AsyncIterator[bytes], *, start_lsn: Lsn, end_lsn: Lsn) -> None:
        assert slot.timeline is not None
        timeline = slot.timeline
        async for _ in body:
            continue
        store_of(timeline).ingest(end_lsn)
        await timeline.freeze_and_flush()


def fake_data_directory(directory: Path, pg_version: int) -> None:
    """Make what stands for the work of initdb."""
    (directory / "pg_notify").mkdir(parents=True)
    (directory / "PG_VERSION").write_text(f"{pg_version}\n")


async def write_image(timeline: Timeline, lsn: Lsn = START) -> None:
    """Give a fresh root timeline its first layer."""
    layer = store_of(timeline).write_layer(f"{_FULL}__{int(lsn):016X}", timeline.generation.number)
    await timeline.publish_layers([layer], disk_consistent_lsn=lsn)


def store_of(timeline: Timeline) -> FakeStore:
    assert isinstance(timeline.store, FakeStore)
    return timeline.store


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition that others bring about holds; fails after 5 seconds."""
    async with asyncio.timeout(5):
        while not await condition():  # noqa: ASYNC110 - a test watches from outside and has no event to wait for
            await asyncio.sleep(0)


@dataclass
class World:
    """One server's tenants in a directory."""

    workdir: Path
    manager: TenantManager
    resources: TenantResources
    engine: Engine
    pages: FakePages
    way_in: FakeWayIn
    storage: LocalStore

    @classmethod
    async def start(
        cls,
        workdir: Path,
        *,
        bucket: Path | None = None,
        storage: LocalStore | None = None,
        way_in: FakeWayIn | None = None,
        engine: Engine | None = None,
        failpoints: Failpoints | None = None,
        log: Any = None,
        end_process: Callable[[], object] = os.abort,
        **settings: Any,
    ) -> World:
        """Start in `workdir`, over what an earlier world left there. With `bucket`, layers are stored there as well."""
        engine, pages, way_in = engine or FakeEngine(), FakePages(), way_in or FakeWayIn()
        storage = storage or LocalStore(bucket or workdir / "local-storage")
        number = next(_instances)
        clock, log = SystemClock(), log or structlog.get_logger()
        claim = GenerationClaim(1234, f"instance {number}", "host", datetime.now(UTC).isoformat())
        generations = BucketGenerations(storage, claim, clock=clock, log=log)
        failpoints = failpoints or Failpoints.off()
        disk = DiskGuard(log, end_process=end_process)
        deletions = DeletionQueue(
            workdir,
            storage=storage,
            validator=generations,
            clock=clock,
            log=log,
            failpoints=failpoints,
            disk=disk,
        )
        resources = TenantResources(
            workdir=workdir,
            node_id=1234,
            settings=parse_settings(settings) if settings else ServerSettings(),
            storage=storage,
            stores_layers=bucket is not None,
            engine=engine,
            pages=pages,
            way_in=way_in,
            downloads=DownloadCounts(),
            generations=generations,
            deletions=deletions,
            clock=clock,
            log=log,
            disk=disk,
            failpoints=failpoints,
        )
        manager = TenantManager(resources)
        generations.on_stale = manager.demote
        deletions.start()
        await manager.load_from_disk()
        for tenant in manager.attached():
            await tenant.wait_active(10)
        return cls(workdir, manager, resources, engine, pages, way_in, storage)

    async def stop(self) -> None:
        """Stop as a server does: flush, upload, write deletion lists."""
        await self.manager.shut_down()
        await self.resources.deletions.flush()
        await self.resources.deletions.close()

    async def kill(self) -> None:
        """Stop as a crash does: what is not in the store or in files now never gets there."""
        for tenant in self.manager.attached():
            await tenant.shut_down(flush=False)
        await self.manager.shut_down()
        await self.resources.deletions.close()
