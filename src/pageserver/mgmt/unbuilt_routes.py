"""Routes of the specification that this release does not have: 501 with the route's name, so that nobody takes silence
for success.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from pageserver.mgmt.errors import not_built

router = APIRouter()

_TENANT = "/v1/tenant/{tenant_shard_id}"
_TIMELINE = _TENANT + "/timeline/{timeline_id}"

UNBUILT: list[tuple[str, str]] = [
    ("GET", "/profile/cpu"),
    ("GET", "/profile/heap"),
    ("GET", "/v1/doc"),
    ("POST", "/v1/reload_auth_validation_keys"),
    ("POST", "/v1/top_tenants"),
    ("GET", "/v1/list_tenant_visible_size"),
    ("PUT", "/v1/disk_usage_eviction/run"),
    ("PUT", "/v1/io_engine"),
    ("PUT", "/v1/io_mode"),
    ("POST", "/v1/tracing/event"),
    ("GET", "/v1/panic"),
    ("PUT", "/v1/feature_flag/{flag_key}"),
    ("DELETE", "/v1/feature_flag/{flag_key}"),
    ("POST", "/v1/feature_flag_spec"),
    ("POST", "/hadron-internal/reset_alert_gauges"),
    ("GET", _TENANT + "/synthetic_size"),
    ("PUT", _TENANT + "/shard_split"),
    ("POST", _TENANT + "/secondary/download"),
    ("GET", _TENANT + "/secondary/status"),
    ("PUT", _TENANT + "/break"),
    ("GET", _TENANT + "/feature_flag/{flag_key}"),
    ("POST", _TENANT + "/force_refresh_feature_flag"),
    ("PUT", _TIMELINE + "/detach_ancestor"),
    ("POST", _TIMELINE + "/lsn_lease"),
    ("PUT", _TIMELINE + "/compact"),
    ("GET", _TIMELINE + "/compact"),
    ("DELETE", _TIMELINE + "/compact"),
    ("PUT", _TIMELINE + "/mark_invisible"),
    ("POST", _TIMELINE + "/patch_index_part"),
    ("POST", _TIMELINE + "/block_gc"),
    ("POST", _TIMELINE + "/unblock_gc"),
    ("POST", _TIMELINE + "/layer/{layer_name}/scan_disposable_keys"),
    ("POST", _TIMELINE + "/download_heatmap_layers"),
    ("DELETE", _TIMELINE + "/download_heatmap_layers"),
    ("GET", _TIMELINE + "/touchpage"),
    ("GET", _TIMELINE + "/page_trace"),
    ("POST", _TIMELINE + "/perf_info"),
    ("POST", _TIMELINE + "/ingest_aux_files"),
    ("POST", _TIMELINE + "/list_aux_files"),
    ("PUT", _TIMELINE + "/activate_post_import"),
]


async def refuse(request: Request) -> Response:
    raise not_built(f"{request.method} {request.url.path}")


for _method, _path in UNBUILT:
    router.add_api_route(_path, refuse, methods=[_method], include_in_schema=False)
