"""Archiving, offloading, and the list that shows what is offloaded (http-api.md 4.3, tenants.md 13)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pageserver.ids import TenantShardId
from pageserver.mgmt.context import context_of
from pageserver.mgmt.models import ArchivalBody
from pageserver.mgmt.requests import model_body, tenant_shard_id, timeline_id
from pageserver.mgmt.tenant_routes import active_tenant
from pageserver.mgmt.timeline_routes import BASE, ONE, info_json, with_names
from pageserver.remote.tenant_manifest import OffloadedTimeline

router = APIRouter()


@router.get(BASE + "_and_offloaded")
async def list_timelines_and_offloaded(request: Request) -> Response:
    tenant = await active_tenant(context_of(request), tenant_shard_id(request))
    timelines = [await info_json(request, tenant, info) for info in tenant.details()]
    offloaded = [
        with_names(tenant, record.timeline_id, _offloaded_json(tenant.shard, record))
        for _, record in sorted(tenant.archival.offloaded.items())
    ]
    return JSONResponse({"timelines": timelines, "offloaded": offloaded})


@router.put(ONE + "/archival_config")
async def put_archival_config(request: Request) -> Response:
    """Archive or unarchive; durable when this is answered."""
    tenant = await active_tenant(context_of(request), tenant_shard_id(request))
    body = await model_body(request, ArchivalBody)
    if body.state == "Archived":
        await tenant.archival.archive(timeline_id(request))
    else:
        await tenant.archival.unarchive(timeline_id(request))
    return JSONResponse(None)


@router.put(ONE + "/offload")
async def offload_timeline(request: Request) -> Response:
    tenant = await active_tenant(context_of(request), tenant_shard_id(request))
    await tenant.archival.offload(timeline_id(request))
    return JSONResponse(None)


def _offloaded_json(shard: TenantShardId, record: OffloadedTimeline) -> dict[str, Any]:
    """Return OffloadedTimelineInfo (5.3): the manifest's line, with the tenant and a zone for the time."""
    return {"tenant_id": str(shard), **record.encode(), "archived_at": _zoned(record.archived_at)}


def _zoned(naive: str) -> str:
    """Write a document's time stamp as RFC 3339 with 0, 3, 6 or 9 digits."""
    seconds, _, fraction = naive.partition(".")
    fraction = fraction.rstrip("0")
    digits = -(-len(fraction) // 3) * 3
    return f"{seconds}.{fraction.ljust(digits, '0')}Z" if digits else f"{seconds}Z"
