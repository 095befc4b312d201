"""Routes of one tenant shard (http-api.md 4.2)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pageserver.config import TenantOverrides
from pageserver.config.validation import describe
from pageserver.errors import PageServerError, UnavailableError
from pageserver.ids import TenantId, TenantShardId, TimelineId
from pageserver.lsn import Lsn
from pageserver.mgmt.context import ACTIVE_WAIT_SECONDS, ApiContext, context_of
from pageserver.mgmt.errors import ApiError, bad_request
from pageserver.mgmt.models import LocationConfigBody, WaitTimeout
from pageserver.mgmt.process_routes import tenant_info
from pageserver.mgmt.requests import json_body, model_body, parse_count, query_flag, query_param, tenant_shard_id
from pageserver.tenant import Attached, AttachMode, Tenant
from pageserver.timeline import Timeline

router = APIRouter()

_CLAIMS_SHOWN = 100
_CLAIM_KEYS = ("node_id", "instance", "host", "claimed_at")


async def active_tenant(context: ApiContext, shard: TenantShardId) -> Tenant:
    """Return a tenant that serves ("active wait", http-api.md 2). Raises what 3.3 lists."""
    tenant = context.manager.get(shard)
    await tenant.wait_active(ACTIVE_WAIT_SECONDS)
    return tenant


@router.get("/v1/tenant/{tenant_shard_id}")
async def get_tenant(request: Request) -> Response:
    tenant = context_of(request).manager.get(tenant_shard_id(request))
    if query_flag(request, "activate", default=True):
        try:
            await tenant.wait_active(ACTIVE_WAIT_SECONDS)
        except PageServerError:
            # The state that is reported says it all.
            context_of(request).log.debug("tenant is not active", tenant=str(tenant.shard))
    pid, last = tenant.redo_pid(), tenant.last_redo_at()
    return JSONResponse(
        {
            **tenant_info(tenant, with_size=True),
            "walredo": {
                "last_redo_at": None if last is None else f"{last:%Y-%m-%dT%H:%M:%S.%f}Z",
                "process": None if pid is None else {"pid": pid},
            },
            "timelines": [str(timeline_id) for timeline_id in sorted(tenant.timelines)],
        }
    )


@router.delete("/v1/tenant/{tenant_shard_id}")
async def delete_tenant(request: Request) -> Response:
    await context_of(request).manager.delete(tenant_shard_id(request))
    return JSONResponse(None)


@router.put("/v1/tenant/{tenant_shard_id}/location_config")
async def put_location_config(request: Request) -> Response:
    context = context_of(request)
    shard = tenant_shard_id(request)
    flush_ms = query_param(request, "flush_ms", parse_count)
    lazy = query_flag(request, "lazy", default=False)
    body = await model_body(request, LocationConfigBody)
    await context.failpoints.fail("put-location-conf-handler", text="failpoint", error=UnavailableError)
    # Without a controller the store itself hands out generations (standalone.md 1).
    location = body.to_request(claims_generations=context.config.settings.control_plane_api is None)
    await context.manager.put_location(
        shard, location, flush_seconds=None if flush_ms is None else flush_ms / 1000, lazy=lazy
    )
    if body.mode == "Detached":
        return JSONResponse(None)
    if flush_ms is not None:
        await _upload_heatmap_if_possible(context, shard)
    is_attached = body.mode != "Secondary"
    return JSONResponse(
        {
            "shards": [{"shard_id": str(shard), "node_id": context.config.node_id}] if is_attached else [],
            "stripe_size": body.shard_stripe_size if is_attached and body.shard_count > 1 else None,
        }
    )


@router.post("/v1/tenant/{tenant_shard_id}/heatmap_upload")
async def upload_heatmap(request: Request) -> Response:
    manager = context_of(request).manager
    tenant = manager.get(tenant_shard_id(request))
    await tenant.own(manager.heatmaps.upload(tenant, only_if_changed=False), name=f"heatmap of {tenant.shard}")
    return JSONResponse(None)


@router.post("/v1/tenant/{tenant_shard_id}/reset")
async def reset_tenant(request: Request) -> Response:
    """Attach anew in the same generation; with `drop_cache` without the local files."""
    drop_cache = query_flag(request, "drop_cache", default=False)
    await context_of(request).manager.reset(tenant_shard_id(request), drop_cache=drop_cache)
    return JSONResponse(None)


@router.get("/v1/tenant/{tenant_shard_id}/generations")
async def get_generations(request: Request) -> Response:
    """Ours: who claimed which generation of a tenant in the store, attached here or not (standalone.md 1); the newest
    `limit` (100) claims, newest first.
    """
    manager = context_of(request).manager
    shard = tenant_shard_id(request)
    limit = query_param(request, "limit", parse_count)
    record = await manager.read_generations(shard, claims_max=_CLAIMS_SHOWN if limit is None else limit)
    return JSONResponse(
        {
            "claims": [
                {"generation": number, **(asdict(claim) if claim else dict.fromkeys(_CLAIM_KEYS))}
                for number, claim in record.claims.items()
            ],
            "claims_total": record.claims_total,
            "highest_claim": record.highest_claim,
            "highest_object": record.highest_object,
            "next_generation": record.next_generation,
        }
    )


@router.get("/v1/tenant/{tenant_shard_id}/config")
async def get_config(request: Request) -> Response:
    tenant = context_of(request).manager.get(tenant_shard_id(request))
    return JSONResponse(
        {
            "tenant_specific_overrides": dict(sorted(tenant.location.overrides.known().items())),
            "effective_config": tenant.settings().to_api(),
        }
    )


@router.put("/v1/tenant/config")
async def put_config(request: Request) -> Response:
    """Replace all overrides."""
    context, tenant, given = await _config_request(request)
    await _store_overrides(context, tenant, TenantOverrides.parse(given))
    return JSONResponse(None)


@router.patch("/v1/tenant/config")
async def patch_config(request: Request) -> Response:
    """Set, and with null remove, single overrides."""
    context, tenant, given = await _config_request(request)
    await _store_overrides(context, tenant, tenant.location.overrides.patched(given))
    return JSONResponse(None)


@router.post("/v1/tenant/{tenant_shard_id}/wait_lsn")
async def wait_lsn(request: Request) -> Response:
    """Wait until timelines have reached LSNs: 200 all, 202 not in time, 404 none of them is here. While the tenant
    attaches nobody knows which are.
    """
    tenant = await active_tenant(context_of(request), tenant_shard_id(request))
    body = await json_body(request)
    if not isinstance(body, dict):
        raise bad_request("Failed to parse json request: .: expected an object")
    try:
        timeout = WaitTimeout.model_validate(body.pop("timeout", None))
        wanted = {TimelineId.parse(name): Lsn.parse(lsn) for name, lsn in body.items()}
    except ValidationError as error:
        raise bad_request(f"Failed to parse json request: timeout: {describe(error)}") from error
    except (PageServerError, TypeError, AttributeError) as error:
        raise bad_request(f"Failed to parse json request: .: {error}") from error
    timelines = [
        (entry, lsn) for name, lsn in wanted.items() if isinstance(entry := tenant.timelines.get(name), Timeline)
    ]
    if not timelines:
        raise ApiError(404, "none of the timelines is here", body=None, has_body=True)
    results = await asyncio.gather(
        *(timeline.wait_for_lsn(lsn, timeout.seconds) for timeline, lsn in timelines), return_exceptions=True
    )
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, PageServerError):
            raise result
    return JSONResponse(None, 200 if all(result is None for result in results) else 202)


async def _upload_heatmap_if_possible(context: ApiContext, shard: TenantShardId) -> None:
    """Whoever hands a location over with `flush_ms` wants a fresh heatmap; without one it works as well
    (tenants.md 4.2). A stale location has none to offer.
    """
    try:
        tenant = context.manager.get(shard)
        mode = tenant.effective_location().mode
        if isinstance(mode, Attached) and mode.mode is not AttachMode.STALE:
            work = context.manager.heatmaps.upload(tenant, only_if_changed=False)
            await tenant.own(work, name=f"heatmap of {shard}")
    except PageServerError as error:
        context.log.warning("no heatmap was uploaded", tenant=str(shard), error=str(error))


async def _config_request(request: Request) -> tuple[ApiContext, Tenant, Mapping[str, Any]]:
    context = context_of(request)
    body = await json_body(request)
    if not isinstance(body, dict) or not isinstance(body.get("tenant_id"), str):
        raise bad_request("Failed to parse json request: tenant_id: missing field")
    given = {key: value for key, value in body.items() if key != "tenant_id"}
    unknown = TenantOverrides.parse(given).unknown
    if unknown:
        raise bad_request(f"Failed to parse json request: {min(unknown)}: unknown field")
    tenant = await active_tenant(context, TenantShardId.unsharded(TenantId.parse(body["tenant_id"])))
    return context, tenant, given


async def _store_overrides(context: ApiContext, tenant: Tenant, overrides: TenantOverrides) -> None:
    mode = Attached(tenant.generation)
    await context.manager.update_config(tenant, replace(tenant.location, mode=mode, overrides=overrides))
