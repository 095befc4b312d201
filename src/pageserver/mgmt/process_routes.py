"""Routes about the whole server (http-api.md 4.1)."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pageserver.errors import UnavailableError
from pageserver.mgmt.context import context_of
from pageserver.mgmt.requests import query_flag, tenant_shard_id
from pageserver.tenant import Tenant

router = APIRouter()


@router.get("/v1/status")
async def get_status(request: Request) -> Response:
    return JSONResponse({"id": context_of(request).config.node_id})


@router.get("/metrics")
async def get_metrics(request: Request) -> Response:
    use_latest = query_flag(request, "use_latest", default=False)
    text = await context_of(request).scrapes.answer(use_latest=use_latest)
    # Not as a media type: the framework would add a character set.
    return Response(text, headers={"content-type": "text/plain; version=0.0.4"})


@router.get("/swagger.yml")
async def get_api_document(request: Request) -> Response:
    """The OpenAPI document, also at `/openapi.json`: JSON is YAML."""
    return Response(json.dumps(request.app.openapi(), indent=1), media_type="application/yaml")


@router.get("/v1/utilization")
async def get_utilization(request: Request) -> Response:
    """The storage controller's heartbeat."""
    context = context_of(request)
    await context.failpoints.fail("get-utilization-http-handler", text="failpoint", error=UnavailableError)
    context.manager.attached()  # A map that is not open has no shards to count.
    return Response(await context.manager.utilization.answer(), media_type="application/json")


@router.get("/v1/tenant")
async def list_tenants(request: Request) -> Response:
    return JSONResponse([tenant_info(tenant) for tenant in context_of(request).manager.attached()])


@router.get("/v1/location_config")
async def list_locations(request: Request) -> Response:
    locations = context_of(request).manager.locations()
    shards = [[str(shard), None if location is None else location.to_api()] for shard, location in locations]
    return JSONResponse({"tenant_shards": shards})


@router.get("/v1/location_config/{tenant_shard_id}")
async def get_location(request: Request) -> Response:
    location = context_of(request).manager.location(tenant_shard_id(request))
    return JSONResponse(None if location is None else location.to_api())


@router.put("/v1/deletion_queue/flush")
async def flush_deletion_queue(request: Request) -> Response:
    """Return once pending deletions lie in lists on disk, or with `execute` once they are validated and done."""
    execute = query_flag(request, "execute", default=False)
    deletions = context_of(request).manager.deletions
    await (deletions.flush_execute() if execute else deletions.flush())
    return JSONResponse(None)


def tenant_info(tenant: Tenant, *, with_size: bool = False) -> dict[str, Any]:
    """Return TenantInfo (http-api.md 5.2); the size is null in the list route."""
    return {
        "id": str(tenant.shard),
        "state": tenant.state.to_json(),
        "current_physical_size": tenant.physical_size() if with_size else None,
        "attachment_status": tenant.state.attachment_json(),
        "generation": tenant.generation.number,
    }
