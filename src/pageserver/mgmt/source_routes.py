"""Ours: where a timeline's WAL comes from (docs/decisions/0008).

GET  …/source            the document, the source's state, what the primary keeps for the slot
PUT  …/source            {"conninfo"}: go on from this primary
POST …/source/resync     {"force"}: take a new base backup after a lost slot; poll the timeline (`import`, `gaps`)
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pageserver.ids import TimelineId
from pageserver.mgmt.context import context_of
from pageserver.mgmt.models import ResyncBody, SourceBody
from pageserver.mgmt.requests import model_body, tenant_shard_id
from pageserver.mgmt.tenant_routes import active_tenant
from pageserver.mgmt.timeline_routes import ONE, named_timeline_id
from pageserver.tenant import Tenant

router = APIRouter()


@router.get(ONE + "/source")
async def get_source(request: Request) -> Response:
    tenant, timeline_id = await _named(request)
    return JSONResponse(await tenant.source_changes.describe(timeline_id))


@router.put(ONE + "/source")
async def set_source(request: Request) -> Response:
    tenant, timeline_id = await _named(request)
    body = await model_body(request, SourceBody)
    info = await tenant.source_changes.set_primary(timeline_id, {"conninfo": body.conninfo})
    return JSONResponse(info.to_json())


@router.post(ONE + "/source/resync")
async def resync(request: Request) -> Response:
    tenant, timeline_id = await _named(request)
    body = await model_body(request, ResyncBody)
    info = await tenant.source_changes.resync(timeline_id, force=body.force)
    return JSONResponse(info.to_json(), 202)


async def _named(request: Request) -> tuple[Tenant, TimelineId]:
    tenant = await active_tenant(context_of(request), tenant_shard_id(request))
    return tenant, named_timeline_id(request, tenant)
