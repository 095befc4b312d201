"""Ours: names of timelines (standalone.md 4). Neon's own routes keep ids; routes of ours take a name as well."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pageserver.ids import TimelineId
from pageserver.mgmt.context import context_of
from pageserver.mgmt.errors import bad_request
from pageserver.mgmt.models import NameBody, RenameBody
from pageserver.mgmt.requests import model_body, tenant_shard_id
from pageserver.mgmt.tenant_routes import active_tenant
from pageserver.tenant import Tenant

router = APIRouter()
ALL = "/v1/tenant/{tenant_shard_id}/name"
ONE = ALL + "/{name}"


@router.get(ALL)
async def list_names(request: Request) -> Response:
    tenant = await _tenant(request)
    return JSONResponse({"names": [_pair(name, timeline_id) for name, timeline_id in tenant.names.all().items()]})


@router.get(ONE)
async def get_name(request: Request) -> Response:
    tenant = await _tenant(request)
    name = request.path_params["name"]
    return JSONResponse(_pair(name, tenant.names.get(name)))


@router.put(ONE)
async def give_name(request: Request) -> Response:
    """Durable when this is answered; 409 if another timeline is called so."""
    tenant = await _tenant(request)
    name = request.path_params["name"]
    timeline_id = (await model_body(request, NameBody)).id()
    await tenant.names.give(name, timeline_id)
    return JSONResponse(_pair(name, timeline_id))


@router.post(ONE + "/rename")
async def rename(request: Request) -> Response:
    tenant = await _tenant(request)
    new_name = (await model_body(request, RenameBody)).new_name
    return JSONResponse(_pair(new_name, await tenant.names.rename(request.path_params["name"], new_name)))


@router.delete(ONE)
async def remove_name(request: Request) -> Response:
    """Take the name away; the timeline stays."""
    tenant = await _tenant(request)
    await tenant.names.remove(request.path_params["name"])
    return JSONResponse(None)


async def _tenant(request: Request) -> Tenant:
    tenant = await active_tenant(context_of(request), tenant_shard_id(request))
    if not tenant.shard.is_shard_zero():
        raise bad_request("names of timelines are kept by shard zero")
    return tenant


def _pair(name: str, timeline_id: TimelineId) -> dict[str, Any]:
    return {"name": name, "timeline_id": str(timeline_id)}
