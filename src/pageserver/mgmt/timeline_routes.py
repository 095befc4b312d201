"""Routes of one timeline: creation, description, reads for tools (http-api.md 4.3)."""

from __future__ import annotations

import asyncio
import contextlib
import re
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pageserver import _core
from pageserver.errors import CorruptDataError, NotFoundError, PageServerError, PreconditionFailedError
from pageserver.ids import TimelineId
from pageserver.keyspace.collect import collect_keyspace
from pageserver.keyspace.key import Key
from pageserver.keyspace.time_search import (
    Future,
    NoData,
    Past,
    Present,
    find_lsn_in_stretches,
    find_timestamp_for_lsn,
    from_postgres_time,
    to_postgres_time,
)
from pageserver.lsn import Lsn
from pageserver.mgmt.context import context_of
from pageserver.mgmt.errors import ApiError, bad_request, not_built
from pageserver.mgmt.models import GcBody, TimelineCreateBody
from pageserver.mgmt.requests import (
    model_body,
    parse_lsn,
    query_flag,
    query_param,
    required_query_param,
    tenant_shard_id,
    timeline_id,
)
from pageserver.mgmt.tenant_routes import active_tenant
from pageserver.tenant import Tenant
from pageserver.timeline import Timeline, TimelineInfo
from pageserver.timeline.state import TimelineStatus

router = APIRouter()
BASE = "/v1/tenant/{tenant_shard_id}/timeline"
ONE = BASE + "/{timeline_id}"
DEFAULT_PG_VERSION = 17
"""Of a bootstrap that names none (tenants.md 9.1)."""

_REDO_FAILED = "reconstruct a page image"
"""How the engine's error begins if records could not be replayed."""
_RFC_3339_UTC = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?[Zz]")


@router.post(BASE)
async def create_timeline(request: Request) -> Response:
    tenant = await active_tenant(context_of(request), tenant_shard_id(request))
    body = await model_body(request, TimelineCreateBody)
    new_id = body.new_id()
    if body.name is not None:
        tenant.names.check_free(body.name, new_id)
    ancestor_id = body.ancestor_id()
    if ancestor_id is not None:
        info = await tenant.create_branch(new_id, ancestor_id, body.start_lsn(), read_only=body.read_only)
    elif body.import_pgdata is not None:
        raise not_built("import of a data directory from a bucket")
    elif body.primary is not None:
        info = await tenant.create_from_primary(new_id, body.primary)
    else:
        info = await tenant.bootstrap(
            new_id,
            pg_version=body.pg_version or DEFAULT_PG_VERSION,
            existing=body.existing_initdb_id(),
            flavour=body.flavour,
        )
    if body.name is not None:
        await tenant.names.give(body.name, new_id)
    return JSONResponse(with_names(tenant, new_id, info.to_json()), 201)


@router.get(BASE)
async def list_timelines(request: Request) -> Response:
    tenant = await active_tenant(context_of(request), tenant_shard_id(request))
    return JSONResponse([await info_json(request, tenant, info) for info in tenant.details()])


@router.get(ONE)
async def get_timeline(request: Request) -> Response:
    tenant = await active_tenant(context_of(request), tenant_shard_id(request))
    return JSONResponse(await info_json(request, tenant, tenant.detail(timeline_id(request))))


@router.delete(ONE)
async def delete_timeline(request: Request) -> Response:
    """202 once the decision is durable; repeat until 404."""
    context = context_of(request)
    shard, timeline = tenant_shard_id(request), timeline_id(request)
    try:
        tenant = await active_tenant(context, shard)
    except NotFoundError as error:
        # The storage controller looks for this text (http-api.md 3.4).
        raise PreconditionFailedError("Requested tenant is missing") from error
    await tenant.delete_timeline(timeline)
    return JSONResponse(None, 202)


@router.post(ONE + "/preserve_initdb_archive")
async def preserve_initdb_archive(request: Request) -> Response:
    """Copy the archive of initdb to the name that outlives the timeline."""
    tenant = await active_tenant(context_of(request), tenant_shard_id(request))
    await tenant.preserve_initdb(timeline_id(request))
    return JSONResponse(None)


@router.get(ONE + "/keyspace")
async def get_keyspace(request: Request) -> Response:
    tenant, timeline = await open_timeline(request)
    lsn = query_param(request, "at_lsn", parse_lsn) or timeline.last_record_lsn
    timeline.check_not_in_gap(lsn)
    snapshot = timeline.snapshot(lsn)
    collected = await asyncio.to_thread(collect_keyspace, snapshot, tenant.location.shard)
    return JSONResponse(collected.to_json())


@router.get(ONE + "/getpage")
async def get_page(request: Request) -> Response:
    """The value of a key at an LSN; with `Accept: application/octet-stream` (ours) as it is, else as the JSON of
    5.6.
    """
    _, timeline = await open_timeline(request)
    key = query_param(request, "key", Key.parse)
    if key is None:
        raise bad_request("missing 'key' query parameter")
    lsn = query_param(request, "lsn", parse_lsn) or timeline.last_record_lsn
    _check_readable(timeline, lsn)
    try:
        page, layers, delta_layers = await asyncio.to_thread(_read, timeline, key, lsn)
    except CorruptDataError as error:
        if str(error).startswith(_REDO_FAILED):
            # In the words that alerts look for (walredo.md 1.1).
            context_of(request).log.critical(
                f"[tenant_shard_id: {timeline.tenant_shard_id}, timeline_id: {timeline.timeline_id}] "
                f"walredo failure during page reconstruction: {error}"
            )
        raise
    if request.headers.get("accept") == "application/octet-stream":
        return Response(page, media_type="application/octet-stream", headers={"x-lsn": str(lsn)})
    return JSONResponse(
        {
            "page": list(page),
            "layers_visited": layers,
            "delta_layers_visited": delta_layers,
            "records": [],
            "img": None,
        }
    )


@router.get(ONE + "/get_lsn_by_timestamp")
async def get_lsn_by_timestamp(request: Request) -> Response:
    tenant, timeline = await open_timeline(request)
    _check_shard_zero(tenant)
    wanted = required_query_param(request, "timestamp", parse_timestamp)
    if query_flag(request, "with_lease", default=False):
        raise not_built("an lsn lease")
    await context_of(request).failpoints.pause("find-lsn-for-timestamp-pausable")
    lowest = max(timeline.gc_cutoff_lsn, timeline.ancestor_lsn)
    found = await asyncio.to_thread(
        find_lsn_in_stretches,
        timeline.store,
        to_postgres_time(wanted),
        min_lsn=lowest,
        last_record_lsn=timeline.last_record_lsn,
        gaps=[(gap.from_lsn, gap.to_lsn) for gap in timeline.gaps],
    )
    kinds = {Present: "present", Past: "past", Future: "future", NoData: "nodata"}
    return JSONResponse({"lsn": str(found.lsn), "kind": kinds[type(found)]})


@router.get(ONE + "/get_timestamp_of_lsn")
async def get_timestamp_of_lsn(request: Request) -> Response:
    tenant, timeline = await open_timeline(request)
    _check_shard_zero(tenant)
    lsn = required_query_param(request, "lsn", parse_lsn)
    timeline.check_not_in_gap(lsn)
    found = await asyncio.to_thread(find_timestamp_for_lsn, timeline.store, lsn)
    if found is None:
        raise PreconditionFailedError(f"Timestamp for lsn {lsn} not found")
    moment = from_postgres_time(found)
    fraction = f".{moment.microsecond:06d}000" if moment.microsecond else ""
    return JSONResponse(f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z")


@router.put(ONE + "/checkpoint")
async def checkpoint(request: Request) -> Response:
    """Freeze and flush, so that tests and tools need not wait for the next roll. Publishing is part of every flush."""
    _, timeline = await open_timeline(request)
    if any(query_flag(request, name, default=False) for name in _COMPACTION_FLAGS):
        raise not_built("compaction")
    query_flag(request, "compact", default=True)
    query_flag(request, "wait_until_uploaded", default=False)
    if query_flag(request, "wait_until_flushed", default=True):
        await timeline.freeze_and_flush()
    else:
        await timeline.roll()
    return JSONResponse(None)


@router.put(ONE + "/do_gc")
async def do_gc(request: Request) -> Response:
    """Collect garbage now, with the tenant's horizon or the given one. Layered repositories cannot do it yet."""
    tenant, timeline = await open_timeline(request)
    if not tenant.garbage.removes_versions:
        raise not_built("garbage collection of layers")
    body = await model_body(request, GcBody)
    started = asyncio.get_running_loop().time()
    report = await tenant.garbage.collect(timeline, gc_horizon=body.gc_horizon)
    elapsed = asyncio.get_running_loop().time() - started
    names = ("total", "needed_by_cutoff", "needed_by_pitr", "needed_by_branches", "needed_by_leases", "not_updated")
    return JSONResponse(
        {
            **{f"layers_{name}": 0 for name in (*names, "removed")},
            "elapsed": round(elapsed * 1000),
            "cutoff_lsn": str(Lsn(report.cutoff_lsn)),
            "versions_total": report.versions_seen,
            "versions_removed": report.versions_removed,
        }
    )


_IGNORED_DETAILS = ("include-image-consistent-lsn",)
"""Checked and without effect: there is no such LSN before there is compaction."""
_COMPACTION_FLAGS = ("force_l0_compaction", "force_repartition", "force_image_layer_creation")


async def open_timeline(request: Request) -> tuple[Tenant, Timeline]:
    """Return the timeline that the path names, and its tenant, which serves. Raises what 3.3 lists."""
    tenant = await active_tenant(context_of(request), tenant_shard_id(request))
    return tenant, tenant.get_timeline(timeline_id(request))


async def info_json(request: Request, tenant: Tenant, info: TimelineInfo) -> dict[str, Any]:
    """Return TimelineInfo (5.3), with the size that only a count gives if the request asks for it."""
    for name in _IGNORED_DETAILS:
        query_flag(request, name, default=False)
    has_size = info.state.status is TimelineStatus.ACTIVE and tenant.shard.is_shard_zero()
    wants_exact = query_flag(request, "force-await-initial-logical-size", default=False)
    if has_size and wants_exact and not info.current_logical_size_is_accurate:
        # One that cannot be computed now stays what it is, and says so.
        with contextlib.suppress(PageServerError, OSError):
            timeline = tenant.get_timeline(info.timeline_id)
            await timeline.size_calculation.hurry()
            info = tenant.detail(info.timeline_id)
    body = with_names(tenant, info.timeline_id, info.to_json())
    wants_count = query_flag(request, "include-non-incremental-logical-size", default=False)
    if has_size and wants_count:
        snapshot = tenant.get_timeline(info.timeline_id).snapshot(info.last_record_lsn)
        body["current_logical_size_non_incremental"] = await asyncio.to_thread(snapshot.logical_size)
    return body


def named_timeline_id(request: Request, tenant: Tenant) -> TimelineId:
    """Return the timeline that the path names, by id or by name: for routes of ours. Raises NameNotFoundError."""
    return tenant.names.resolve(request.path_params["timeline_id"])


def with_names(tenant: Tenant, timeline_id: TimelineId, body: dict[str, Any]) -> dict[str, Any]:
    """Add what the timeline is called, if it has a name (ours)."""
    names = tenant.names.of(timeline_id)
    return {**body, "names": names} if names else body


def _read(timeline: Timeline, key: Key, lsn: Lsn) -> tuple[bytes, int, int]:
    """Return a value, how many layers were visited for it, and how many of them were not image layers."""
    store = timeline.store
    if isinstance(store, _core.TimelineStore):
        return store.get_with_cost(bytes(key), int(lsn))
    return store.get(bytes(key), int(lsn)), 0, 0


def _check_readable(timeline: Timeline, lsn: Lsn) -> None:
    if lsn < timeline.gc_cutoff_lsn:
        raise bad_request(
            f"tried to request a page version that was garbage collected: {lsn} < {timeline.gc_cutoff_lsn}"
        )
    if lsn > timeline.last_record_lsn:
        raise ApiError(408, f"lsn {lsn} is not reached yet: last record lsn is {timeline.last_record_lsn}")
    timeline.check_not_in_gap(lsn)


def _check_shard_zero(tenant: Tenant) -> None:
    if not tenant.shard.is_shard_zero():
        raise bad_request("Timestamp calculations are only available on shard zero")


def parse_timestamp(text: str) -> datetime:
    """Read RFC 3339 with a mandatory Z; digits beyond microseconds are dropped. Raises ValueError."""
    if not _RFC_3339_UTC.fullmatch(text):
        raise ValueError("an RFC 3339 time stamp with Z is needed")
    head, _, fraction = text[:-1].replace(" ", "T").partition(".")
    return datetime.fromisoformat(f"{head.upper()}.{fraction[:6].ljust(6, '0')}").replace(tzinfo=UTC)
