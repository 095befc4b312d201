"""Routes about what a bucket holds of tenants that need not be attached (http-api.md 4.2)."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pageserver.errors import NotFoundError
from pageserver.mgmt.context import context_of
from pageserver.mgmt.requests import required_query_param, tenant_shard_id, unsharded_tenant_id
from pageserver.mgmt.timeline_routes import parse_timestamp

router = APIRouter()


@router.put("/v1/tenant/{tenant_shard_id}/time_travel_remote_storage")
async def time_travel(request: Request) -> Response:
    """Bring the objects of a shard that is not here back to how they were. Repeat with the same `done_if_after`."""
    shard = tenant_shard_id(request)
    travel_to = required_query_param(request, "travel_to", parse_timestamp)
    done_if_after = required_query_param(request, "done_if_after", parse_timestamp)
    await context_of(request).manager.time_travel(shard, travel_to=travel_to, done_if_after=done_if_after)
    return JSONResponse(None)


@router.get("/v1/tenant/{tenant_id}/scan_remote_storage")
async def scan_remote_storage(request: Request) -> Response:
    tenant_id = unsharded_tenant_id(request).tenant_id
    shards = await context_of(request).manager.scan_remote_storage(tenant_id)
    if not shards:
        raise NotFoundError(f"No shards found for tenant ID {tenant_id}", tenant_id=str(tenant_id))
    return JSONResponse(
        {
            "shards": [
                {
                    "tenant_shard_id": str(found.shard),
                    "generation": found.generation,
                    "stripe_size": found.stripe_size,
                }
                for found in shards
            ]
        }
    )
