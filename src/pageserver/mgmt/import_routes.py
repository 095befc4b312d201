"""Histories that come as files: a base backup's tar, and WAL segments (tenants.md 9.6, 10.2; stock.md 1.7).

Every error here is a 500, also "exists already"; that is what callers of these two routes expect.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pageserver.errors import PageServerError
from pageserver.mgmt.context import context_of
from pageserver.mgmt.errors import ApiError
from pageserver.mgmt.requests import (
    parse_lsn,
    parse_pg_version,
    query_param,
    required_query_param,
    timeline_id,
    unsharded_tenant_id,
)
from pageserver.mgmt.tenant_routes import active_tenant
from pageserver.remote.source_document import Flavour

router = APIRouter()
ONE = "/v1/tenant/{tenant_id}/timeline/{timeline_id}"


@router.put(ONE + "/import_basebackup")
async def import_base_backup(request: Request) -> Response:
    tenant = await active_tenant(context_of(request), unsharded_tenant_id(request))
    work = tenant.import_base_backup(
        timeline_id(request),
        request.stream(),
        base_lsn=required_query_param(request, "base_lsn", parse_lsn),
        end_lsn=required_query_param(request, "end_lsn", parse_lsn),
        pg_version=required_query_param(request, "pg_version", parse_pg_version),
        flavour=query_param(request, "flavour", _parse_flavour) or "neon",
    )
    return await _answer(work)


@router.put(ONE + "/import_wal")
async def import_wal(request: Request) -> Response:
    tenant = await active_tenant(context_of(request), unsharded_tenant_id(request))
    work = tenant.import_wal(
        timeline_id(request),
        request.stream(),
        start_lsn=required_query_param(request, "start_lsn", parse_lsn),
        end_lsn=required_query_param(request, "end_lsn", parse_lsn),
    )
    return await _answer(work)


async def _answer(work: Awaitable[None]) -> Response:
    try:
        await work
    except PageServerError as error:
        raise ApiError(500, str(error)) from error
    return JSONResponse(None)


def _parse_flavour(text: str) -> Flavour:
    if text not in ("stock", "neon"):
        raise ValueError("flavour is stock or neon")
    return cast(Flavour, text)
