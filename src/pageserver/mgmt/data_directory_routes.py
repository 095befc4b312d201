"""Ours: a timeline's data directory at an LSN, for restores and comparisons. Neon's server has nothing like it.

    GET …/data_directory?lsn=&parts=&tli=            manifest: LSN, tablespaces, directories, sizes
    GET …/data_directory/part/{n}?lsn=&parts=&tli=   part n as a tar archive (`serve/restore.py`)
    GET …/data_directory/verify/{n}?lsn=&parts=      part n as frames (`serve/verify_stream.py`)

The same parameters give the same parts, so they may be fetched in parallel and in any order. An answer that breaks
off was cut short by an error: the client must throw all parts away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from pageserver import _core
from pageserver.errors import RequestError
from pageserver.keyspace.key import RelTag
from pageserver.keyspace.snapshot import Snapshot
from pageserver.lsn import Lsn
from pageserver.mgmt.context import context_of
from pageserver.mgmt.errors import bad_request
from pageserver.mgmt.requests import (
    parse_count,
    parse_lsn,
    parse_u32,
    path_param,
    query_param,
    tenant_shard_id,
)
from pageserver.mgmt.tenant_routes import active_tenant
from pageserver.mgmt.timeline_routes import named_timeline_id
from pageserver.postgres.timeline_history import HistoryEntry
from pageserver.postgres.versions import PostgresVersion, postgres_version
from pageserver.repository import ObjectTimeline
from pageserver.serve import restore, verify_stream
from pageserver.serve.data_directory import BlockReader, DataDirectory
from pageserver.timeline import Timeline
from pageserver.wal.source_document import parse_source

router = APIRouter()
BASE = "/v1/tenant/{tenant_shard_id}/timeline/{timeline_id}/data_directory"
PARTS_MAX = 32
WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _View:
    """A timeline at the LSN of the request. `lsn` is what was asked for; reads happen at the snapshot's."""

    timeline: Timeline
    lsn: Lsn
    snapshot: Snapshot
    directory: DataDirectory
    version: PostgresVersion


@router.get(BASE)
async def get_manifest(request: Request) -> Response:
    view = await _view(request)
    plan = await asyncio.to_thread(_plan, view, request)
    return JSONResponse(
        {
            "lsn": str(plan.lsn),
            "pg_version": view.version.major,
            "pg_tli": plan.pg_tli,
            "data_checksums": plan.data_checksums,
            "parts": len(plan.parts),
            "files": plan.files,
            "size_bytes": plan.size_bytes,
            "tablespaces": [{"oid": oid, "location": location} for oid, location in sorted(plan.tablespaces.items())],
            "directories": plan.directories,
            "pg_installation": context_of(request).config.settings.pg_installations.get(str(view.version.major)),
        }
    )


@router.get(BASE + "/part/{part}")
async def get_part(request: Request) -> Response:
    part = path_param(request, "part", parse_count)
    view = await _view(request)
    plan = await asyncio.to_thread(_plan, view, request)
    if not 0 <= part < len(plan.parts):
        raise bad_request(f"there is no part {part} of {len(plan.parts)}")
    return _streamed(restore.stream(view.directory, plan.parts[part], mtime=0), "application/x-tar")


@router.get(BASE + "/verify/{part}")
async def get_verify_part(request: Request) -> Response:
    part = path_param(request, "part", parse_count)
    parts = _parts(request)
    view = await _view(request)
    if not 0 <= part < parts:
        raise bad_request(f"there is no part {part} of {parts}")
    entries = await asyncio.to_thread(verify_stream.entries, view.directory, view.snapshot)
    store = view.timeline.store

    def read_each(rel: RelTag, first: int, count: int, lsn: int) -> tuple[bytes, dict[int, str]]:
        if isinstance(store, ObjectTimeline):
            return store.read_blocks_each(rel, first, count, lsn)
        assert isinstance(store, _core.TimelineStore), "there are two kinds of stores"
        return _core.read_blocks_each(store, rel.spcnode, rel.dbnode, rel.relnode, rel.forknum, first, count, lsn)

    return _streamed(verify_stream.stream(view.directory, read_each, entries[part::parts]), "application/octet-stream")


async def _view(request: Request) -> _View:
    # What is wrong with the request shows before anything is waited for.
    _parts(request)
    _tli(request)
    tenant = await active_tenant(context_of(request), tenant_shard_id(request))
    timeline = tenant.get_timeline(named_timeline_id(request, tenant))
    lsn = query_param(request, "lsn", parse_lsn) or timeline.last_record_lsn
    cutoff = timeline.gc_cutoff_lsn
    if lsn < cutoff:
        raise bad_request(f"lsn {lsn} is before {cutoff}, the first one that can be read")
    # A position inside of a page header, or at its end, is reached when the page before it is complete (stock.md 3.6).
    page = lsn.page_start()
    wait = min(WAIT_SECONDS, context_of(request).config.settings.wait_lsn_timeout.seconds)
    await timeline.wait_for_lsn(page if lsn <= page.normalised() else lsn, wait)
    timeline.check_not_in_gap(lsn)
    snapshot = timeline.snapshot(min(lsn, timeline.last_record_lsn))
    version = postgres_version(timeline.pg_version)
    checksums = timeline.traits.data_checksums
    reader = cast(BlockReader, timeline.store)
    directory = DataDirectory(snapshot, reader, version=version, stamp_checksums=checksums)
    return _View(timeline, lsn, snapshot, directory, version)


def _plan(view: _View, request: Request) -> restore.RestorePlan:
    document = view.timeline.document
    if document is None or document.traits.flavour_at(view.lsn) != "stock":
        raise RequestError(
            f"only a timeline of stock flavour can be restored to an unmodified server; at {view.lsn} it is Neon's",
            hint="take a fullbackup over the page service and run pg_resetwal",
        )
    source = parse_source(document.body)
    history = restore.PgHistory(source.pg_tli, [HistoryEntry(line.pg_tli, line.end_lsn, "") for line in source.history])
    tli = _tli(request)
    return restore.plan(
        view.directory, view.snapshot, history, lsn=view.lsn, version=view.version, parts=_parts(request), tli=tli
    )


def _tli(request: Request) -> int | None:
    tli = query_param(request, "tli", parse_u32)
    if tli == 0:
        raise bad_request("tli is 0; HINT: PostgreSQL's timelines count from 1")
    return tli


def _parts(request: Request) -> int:
    given = query_param(request, "parts", parse_count)
    parts = 1 if given is None else given
    if not 1 <= parts <= PARTS_MAX:
        raise bad_request(f"parts is {parts}, not between 1 and {PARTS_MAX}")
    return parts


def _streamed(pieces: Iterator[bytes], media_type: str) -> Response:
    """Stream from a blocking generator: each piece is made in a worker thread."""
    return StreamingResponse(pieces, media_type=media_type)
