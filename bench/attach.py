"""How long an attach takes: one tenant of many layers, and many tenants; and what an idle tenant costs in memory.

The bucket is a local directory. Its layers are real image layers of one page each, its indices our own, so that all an
attach does is done: claim a generation, find and read index and manifest, compare with the local directory, fill the
layer map. Measured from the request to the moment in which the tenant and its timeline are Active; a page is read then.

The ceiling of an attach is the work that nobody can save: read the index, parse its JSON, and list and stat the local
directory, in the same Python.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.world import Report, note, work_directory
from pageserver._core import Caches, TimelineStore
from pageserver.ids import Generation, TenantId, TenantShardId, TimelineId
from pageserver.keyspace.key import Key, RelTag
from pageserver.lsn import Lsn
from pageserver.remote import IndexPart, paths
from pageserver.remote.index_part import LayerEntry, TimelineMetadata
from tests.page_server import PageServerProcess

LSN = Lsn(0x2000000)
TIMELINE = TimelineId.parse("aa" * 16)
WRITER = Generation(1)
SPC_DEFAULT = 1663
POLL_SECONDS = 0.01
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Options:
    layers: int = 10_000
    tenants: int = 200
    layers_each: int = 50


@dataclass(frozen=True, slots=True)
class StoredTenant:
    """A tenant in the bucket, and the layers (logical names) of its one timeline."""

    shard: TenantShardId
    layers: list[str]


def run(report: Report, options: Options) -> None:
    """Print two lines for the one large tenant, two for the many small ones."""
    with work_directory() as base:
        note(f"a tenant of {options.layers} layers")
        large = store_tenant(base / "large-bucket", 1, options.layers)
        attach_one(report, base / "large", base / "large-bucket", large)
    with work_directory() as base:
        note(f"{options.tenants} tenants of {options.layers_each} layers")
        many = [store_tenant(base / "bucket", 1 + i, options.layers_each) for i in range(options.tenants)]
        attach_many(report, base / "many", base / "bucket", many)


def attach_one(report: Report, workdir: Path, bucket: Path, tenant: StoredTenant) -> None:
    server = PageServerProcess(workdir, settings={"remote_storage": f"{{local_path='{bucket}'}}"})
    figures = {"layers": len(tenant.layers), "target": "seconds < 5"}
    with server:
        begin = time.monotonic()
        attach(server, [tenant])
        wait_active(server, [tenant])
        seconds = time.monotonic() - begin
        read_page(server, tenant)
        ceiling = index_and_directory_seconds(bucket, workdir, tenant)
        line(report, "one tenant, empty disk", seconds, ceiling, **figures)
        server.stop()
        make_resident(bucket, workdir, tenant)
        ceiling = index_and_directory_seconds(bucket, workdir, tenant)
        begin = time.monotonic()
        server.start()
        answers = time.monotonic() - begin
        wait_active(server, [tenant])
        seconds = time.monotonic() - begin
        read_page(server, tenant)
        line(report, "one tenant, restart, all layers here", seconds, ceiling, answers_s=round(answers, 3), **figures)


def attach_many(report: Report, workdir: Path, bucket: Path, tenants: list[StoredTenant]) -> None:
    server = PageServerProcess(workdir, settings={"remote_storage": f"{{local_path='{bucket}'}}"})
    figures = {"tenants": len(tenants), "layers_each": len(tenants[0].layers), "target": "seconds < 20"}
    with server:
        empty = rss_bytes(server)
        begin = time.monotonic()
        attach(server, tenants)
        wait_active(server, tenants)
        seconds = time.monotonic() - begin
        read_page(server, tenants[-1])
        ceiling = sum(index_and_directory_seconds(bucket, workdir, tenant) for tenant in tenants)
        idle = (rss_bytes(server) - empty) // len(tenants)
        line(report, "many tenants, empty disk", seconds, ceiling, idle_tenant_bytes=idle, **figures)
        server.stop()
        for tenant in tenants:
            make_resident(bucket, workdir, tenant)
        begin = time.monotonic()
        server.start()
        answers = time.monotonic() - begin
        wait_active(server, tenants)
        seconds = time.monotonic() - begin
        idle = (rss_bytes(server) - empty) // len(tenants)
        line(
            report,
            "many tenants, restart, all layers here",
            seconds,
            ceiling,
            answers_s=round(answers, 3),
            idle_tenant_bytes=idle,
            **figures,
        )


def line(report: Report, what: str, seconds: float, ceiling: float, **figures: object) -> None:
    report.line(
        "attach",
        what=what,
        seconds=round(seconds, 3),
        ceiling_seconds=round(ceiling, 3),
        ratio=round(ceiling / seconds, 3),
        **figures,
    )


# The bucket


def store_tenant(bucket: Path, number: int, layers: int) -> StoredTenant:
    """Write a tenant into the bucket as the first generation's server would have left it."""
    tenant_id = TenantId(number.to_bytes(16, "big"))
    shard = TenantShardId.unsharded(tenant_id)
    directory = bucket / paths.timelines_prefix(shard) / str(TIMELINE)
    directory.mkdir(parents=True)
    entries: dict[str, LayerEntry] = {}
    store = open_store(directory, tenant_id)
    try:
        for block in range(layers):
            start, end = key_of(block), key_of(block + 1)
            page = block.to_bytes(8, "big") * 1024
            info = store.write_image_layer(start, end, LSN, [("bytes", start, page)], WRITER.number, "zstd(1)")
            os.rename(
                directory / paths.local_layer_name(info.name, WRITER),
                bucket / layer_key(shard, info.name),
            )
            entries[info.name] = LayerEntry(info.file_size, WRITER)
    finally:
        store.shutdown()
    metadata = TimelineMetadata(LSN, None, None, Lsn(0), LSN, LSN, 16)
    index = IndexPart(metadata, entries)
    (bucket / paths.index_key(shard, TIMELINE, WRITER)).write_bytes(index.encode())
    return StoredTenant(shard, list(entries))


def open_store(directory: Path, tenant_id: TenantId) -> TimelineStore:
    return TimelineStore(
        directory=directory,
        tenant_id=bytes(tenant_id),
        timeline_id=bytes(TIMELINE),
        shard=(0, 0, 0x8000),
        pg_version=16,
        flavour="stock",
        hint_bits_logged=False,
        data_checksums=False,
        last_record_lsn=LSN,
        prev_record_lsn=0,
        disk_consistent_lsn=LSN,
        gc_cutoff_lsn=LSN,
        next_open_layer_at=LSN,
        ancestor=None,
        ancestor_lsn=0,
        redo=None,
        caches=Caches(block_cache_bytes=1 << 20, page_cache_bytes=1 << 20, value_memory_bytes=1 << 20),
    )


def key_of(block: int) -> bytes:
    return bytes(Key.relation_block(RelTag(SPC_DEFAULT, 5, 16384, 0), block))


def layer_key(shard: TenantShardId, name: str) -> str:
    return paths.layer_key(shard.tenant_id, shard.shard_index, TIMELINE, name, WRITER)


def make_resident(bucket: Path, workdir: Path, tenant: StoredTenant) -> None:
    """Put all layers where downloads would have put them."""
    directory = paths.timeline_directory(workdir, tenant.shard, TIMELINE)
    for name in tenant.layers:
        local = directory / paths.local_layer_name(name, WRITER)
        if not local.exists():
            os.link(bucket / layer_key(tenant.shard, name), local)


# The server


def attach(server: PageServerProcess, tenants: Iterable[StoredTenant]) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for tenant in tenants:
            body: dict[str, object] = {"mode": "AttachedSingle", "generation": None, "tenant_conf": {}}
            client.put(f"/v1/tenant/{tenant.shard}/location_config", json=body).raise_for_status()


def wait_active(server: PageServerProcess, tenants: list[StoredTenant]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    wanted = {str(tenant.shard) for tenant in tenants}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        while wanted:
            assert time.monotonic() < deadline, f"{len(wanted)} tenants are not Active\n{server.log_end()}"
            states = {entry["id"]: entry["state"]["slug"] for entry in client.get("/v1/tenant").json()}
            broken = [shard for shard in wanted if states.get(shard) == "Broken"]
            assert not broken, f"{broken} are broken\n{server.log_end()}"
            wanted = {shard for shard in wanted if states.get(shard) != "Active"}
            if wanted:
                time.sleep(POLL_SECONDS)
        for tenant in tenants[-1:]:
            timeline = client.get(f"/v1/tenant/{tenant.shard}/timeline/{TIMELINE}").raise_for_status().json()
            assert timeline["state"] == "Active", timeline


def read_page(server: PageServerProcess, tenant: StoredTenant) -> None:
    """Read the last layer's page, which the server has to bring from the bucket."""
    block = len(tenant.layers) - 1
    query = {"key": key_of(block).hex(), "lsn": str(LSN)}
    url = f"{server.url}/v1/tenant/{tenant.shard}/timeline/{TIMELINE}/getpage"
    headers = {"accept": "application/octet-stream"}
    got = httpx.get(url, params=query, headers=headers, timeout=60).raise_for_status().content
    assert got == block.to_bytes(8, "big") * 1024, "the page is another"


def rss_bytes(server: PageServerProcess) -> int:
    for row in Path(f"/proc/{server.pid}/status").read_text().splitlines():
        if row.startswith("VmRSS:"):
            return int(row.split()[1]) * 1024
    raise AssertionError("no VmRSS in /proc/PID/status")


def index_and_directory_seconds(bucket: Path, workdir: Path, tenant: StoredTenant) -> float:
    begin = time.monotonic()
    json.loads((bucket / paths.index_key(tenant.shard, TIMELINE, WRITER)).read_bytes())
    with os.scandir(paths.timeline_directory(workdir, tenant.shard, TIMELINE)) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    assert len(sizes) <= len(tenant.layers)
    return time.monotonic() - begin
