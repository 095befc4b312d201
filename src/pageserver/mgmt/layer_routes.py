"""Routes about the layers of one timeline: list, bring, evict (http-api.md 4.3, 5.4, 5.6).

What may be done is decided by the timeline's `residence`; here it becomes answers.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pageserver.lsn import Lsn
from pageserver.mgmt.errors import ApiError
from pageserver.mgmt.models import DownloadLayersBody
from pageserver.mgmt.requests import model_body, parse_choice, path_param, query_param
from pageserver.mgmt.timeline_routes import ONE, open_timeline
from pageserver.remote import LayerName
from pageserver.timeline import DownloadTaskRunsError, LayerNotFoundError, Timeline

router = APIRouter()

_NOT_MODIFIED = 304
_RESETS = ("NoReset", "AllStats")


@router.get(ONE + "/layer")
async def list_layers(request: Request) -> Response:
    """LayerMapInfo (5.4). Accesses are not counted yet: `access_time` is 0, and there is nothing to `reset`."""
    _, timeline = await open_timeline(request)
    query_param(request, "reset", parse_choice(_RESETS))
    return JSONResponse(await asyncio.to_thread(_layer_map, timeline))


@router.get(ONE + "/layer/{layer_file_name}")
async def download_layer(request: Request) -> Response:
    """Bring a layer to this disk: 200, or 304 if it is there."""
    name = _layer_name(request)
    _, timeline = await open_timeline(request)
    try:
        return _answer(await timeline.residence.download(name))
    except LayerNotFoundError as error:
        raise _not_found(error) from error


@router.delete(ONE + "/layer/{layer_file_name}")
async def evict_layer(request: Request) -> Response:
    """Remove a layer from this disk: 200, or 304 if it is not there; 412 where this disk is the only copy."""
    name = _layer_name(request)
    _, timeline = await open_timeline(request)
    try:
        return _answer(await timeline.residence.evict(name))
    except LayerNotFoundError as error:
        raise _not_found(error) from error


@router.post(ONE + "/download_remote_layers")
async def start_downloading_layers(request: Request) -> Response:
    """Begin to bring all layers: 202 with the task; 409 with the one that runs."""
    _, timeline = await open_timeline(request)
    body = await model_body(request, DownloadLayersBody)
    try:
        status = await timeline.residence.start_downloading_all(body.max_concurrent_downloads)
    except DownloadTaskRunsError as error:
        raise ApiError(409, str(error), body=error.status.to_json(), has_body=True) from error
    return JSONResponse(status.to_json(), 202)


@router.get(ONE + "/download_remote_layers")
async def get_download_task(request: Request) -> Response:
    _, timeline = await open_timeline(request)
    status = timeline.residence.download_task
    if status is None:
        raise ApiError(404, "NotFound: task never started since last pageserver process start")
    return JSONResponse(status.to_json())


def _layer_name(request: Request) -> str:
    """Return the logical name; a generation suffix is dropped. Raises ApiError 400."""
    return str(path_param(request, "layer_file_name", LayerName.parse))


def _answer(has_changed: bool) -> Response:
    """HTTP has no body with 304."""
    return JSONResponse(None) if has_changed else Response(status_code=_NOT_MODIFIED)


def _not_found(error: LayerNotFoundError) -> ApiError:
    """400 with a bare JSON string, as http-api.md 3 has it for these two routes."""
    return ApiError(400, error.message, body=error.message, has_body=True)


def _layer_map(timeline: Timeline) -> dict[str, Any]:
    in_memory: list[dict[str, Any]] = []
    layer = timeline.store.open_layer()
    if layer is not None:
        in_memory.append({"kind": "Open", "lsn_start": str(Lsn(layer.lsn_start))})
    historic: list[dict[str, Any]] = []
    for facts in timeline.store.layers():
        is_delta = facts.kind == "delta"
        entry: dict[str, Any] = {
            "kind": "Delta" if is_delta else "Image",
            "layer_file_name": facts.name,
            "layer_file_size": facts.file_size,
            "lsn_start": str(Lsn(facts.lsn_start)),
        }
        if is_delta:
            entry["lsn_end"] = str(Lsn(facts.lsn_end))
        entry["remote"] = not facts.is_resident
        entry["access_stats"] = {"access_time": 0, "residence_time": 0, "visible": True}
        if is_delta:
            entry["l0"] = facts.is_l0
        historic.append(entry)
    return {"in_memory_layers": in_memory, "historic_layers": historic}
